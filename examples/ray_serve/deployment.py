"""Replicas of awqkit's server behind Ray Serve: the same API, on as many machines as Ray has.

serve run examples.ray_serve.deployment:app model=FOLDER min_replicas=2 max_replicas=8
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send


class Settings(BaseModel):
    """What a deployment is told; wrong or unknown names are refused."""

    model_config = ConfigDict(extra="forbid")

    #: A folder that every machine has, or a hub id.
    model: str
    #: What requests call the model; None: the last part of `model`.
    model_name: str | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    #: Requests a replica that the autoscaler aims at.
    target_requests: float = 16
    #: Requests that one replica takes at most; the others wait at Ray's proxy.
    max_requests: int = 128
    gpus: float = 0
    cpus: float = 1
    quant_policy: str = "0"
    cache_max_entry_count: str = "0.8"
    session_len: int | None = None


def app(arguments: dict[str, Any]) -> serve.Application:
    """The application that `serve run` starts; arguments are Settings."""
    settings = Settings(**arguments)

    def build() -> ASGIApp:
        return server(settings)

    deployment = serve.deployment(
        serve.ingress(build)(Replica),
        name="awqkit",
        max_ongoing_requests=settings.max_requests,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_requests,
        },
        ray_actor_options={"num_gpus": settings.gpus, "num_cpus": settings.cpus},
        # A dead engine is noticed within seconds, and its replica replaced.
        health_check_period_s=2,
        health_check_timeout_s=10,
    )
    return deployment.bind()


class Replica:
    """One engine. Ray replaces the replica when its engine has died."""

    async def check_health(self) -> None:
        if _engine is not None and _engine.gone.is_set():
            raise RuntimeError("the engine's process has ended")


#: The engine of this process; a replica has a process of its own.
_engine: Any = None


def server(settings: Settings) -> ASGIApp:
    """awqkit's own HTTP application, made once its engine has loaded the model."""
    inner = _Late()

    @asynccontextmanager
    async def engine_runs(_: FastAPI) -> AsyncIterator[None]:
        global _engine
        from awqkit_runtime.serve.app import create_app
        from awqkit_runtime.serve.config import ServeConfig
        from awqkit_runtime.serve.server import make_service
        from awqkit_runtime.serve.worker.client import EngineClient

        options = {
            "quant_policy": settings.quant_policy,
            "cache_max_entry_count": settings.cache_max_entry_count,
            "session_len": settings.session_len,
        }
        _engine = await EngineClient.start(settings.model, options)
        config = ServeConfig(model_name=settings.model_name)
        inner.application = create_app(make_service(settings.model, _engine, config))
        try:
            yield
        finally:
            await asyncio.shield(_engine.close())

    outer = FastAPI(lifespan=engine_runs, openapi_url=None)
    outer.mount("/", inner)
    return outer


class _Late:
    """Passes requests on to an application that is there by the time they come."""

    application: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.application(scope, receive, send)
