"""The HTTP application: endpoints, limits, keys, docs."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from awqkit_runtime.serve.auth import RequireKey
from awqkit_runtime.serve.config import ServeConfig
from awqkit_runtime.serve.description import describe
from awqkit_runtime.serve.errors import install_handlers
from awqkit_runtime.serve.limits import LimitBody
from awqkit_runtime.serve.routes import chat, completions, responses, server, tokenize
from awqkit_runtime.serve.service import Service

DOCS_PATH = "/"
SCHEMA_PATH = "/openapi.json"
ASSETS_PATH = "/docs-assets"
#: Swagger UI's files, which are served from here, since a page must not need the network.
ASSETS = {
    f"{ASSETS_PATH}/{name}": name
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
}


def create_app(service: Service) -> ASGIApp:
    """The application around a service whose engine runs."""
    config = service.config
    app = FastAPI(
        title="awqkit-runtime",
        summary=f"{service.model_name} behind OpenAI's API.",
        openapi_url=None if config.hide_docs else SCHEMA_PATH,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    for routes in (server, chat, completions, responses, tokenize):
        app.include_router(routes.router)
    install_handlers(app)
    if not config.hide_docs:
        _add_docs(app)
        describe(app, service)
    return _guarded(app, config)


def _add_docs(app: FastAPI) -> None:
    import fastapi_offline

    folder = Path(fastapi_offline.__file__).parent / "static"
    app.mount(ASSETS_PATH, StaticFiles(directory=folder))

    @app.api_route(DOCS_PATH, methods=["GET", "HEAD"], include_in_schema=False)
    async def docs() -> HTMLResponse:
        script, style, icon = ASSETS
        return get_swagger_ui_html(
            openapi_url=SCHEMA_PATH,
            title="awqkit-runtime",
            swagger_js_url=script,
            swagger_css_url=style,
            swagger_favicon_url=icon,
        )


def _guarded(app: ASGIApp, config: ServeConfig) -> ASGIApp:
    """Behind limits and keys; the last one wrapped is the first one asked."""
    app = LimitBody(app, max_bytes=config.max_body_size)
    if config.api_keys:
        docs = () if config.hide_docs else (DOCS_PATH, SCHEMA_PATH, *ASSETS)
        app = RequireKey(app, keys=config.api_keys, open_paths=("/health", *docs))
    if config.allow_origins:
        app = CORSMiddleware(
            app,
            allow_origins=config.allow_origins,
            allow_methods=("GET", "POST"),
            # OpenAI's client for browsers sends a dozen of its own.
            allow_headers=("*",),
        )
    return app
