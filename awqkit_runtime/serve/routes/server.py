"""/v1/models, /health, /metrics: what the server is and how it fares."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from awqkit_runtime.serve.errors import ApiError
from awqkit_runtime.serve.protocol.models import Health, Model, ModelList
from awqkit_runtime.serve.routes.common import FAILURES, service_of
from awqkit_runtime.serve.service import Service

router = APIRouter(responses=FAILURES, tags=["the server"])


@router.get("/v1/models")
async def list_models(request: Request) -> ModelList:
    """The model that is served here."""
    return ModelList(data=[_model(service_of(request))])


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, request: Request) -> Model:
    """The model, by its name."""
    service = service_of(request)
    service.require_model(model)
    return _model(service)


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request) -> Health:
    """200 while the engine runs, 503 once it has ended; needs no key."""
    if service_of(request).engine.gone.is_set():
        raise ApiError(503, "The engine has stopped; the server ends.", code="engine_stopped")
    return Health()


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(service_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _model(service: Service) -> Model:
    return Model(
        id=service.model_name,
        created=service.created,
        max_model_len=service.encoder.session_len,
    )
