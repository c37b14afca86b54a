"""/tokenize: how many tokens a text or a conversation has, and which."""

from __future__ import annotations

from fastapi import APIRouter, Request

from awqkit_runtime.serve.conversation import template_message
from awqkit_runtime.serve.errors import invalid
from awqkit_runtime.serve.protocol.models import TokenizeRequest, Tokens
from awqkit_runtime.serve.routes.common import FAILURES, service_of
from awqkit_runtime.serve.service import Service
from awqkit_runtime.serve.streaming import unless_gone

router = APIRouter(responses=FAILURES, tags=["generation"])


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> Tokens:
    """The tokens that a prompt, or a conversation in the model's template, is made of."""
    service = service_of(request)
    if body.model is not None:
        service.require_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise invalid("Give either prompt or messages.")
    ids = await unless_gone(request, _encode(body, service))
    return Tokens(tokens=ids, count=len(ids), max_model_len=service.encoder.session_len)


async def _encode(body: TokenizeRequest, service: Service) -> list[int]:
    if body.prompt is not None:
        return await service.encoder.encode(body.prompt)
    messages = [template_message(message) for message in body.messages or ()]
    return await service.encoder.encode_chat(messages, None)
