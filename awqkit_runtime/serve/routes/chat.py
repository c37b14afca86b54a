"""/v1/chat/completions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.serve.chat_answer import ChatAnswer
from awqkit_runtime.serve.job import Job
from awqkit_runtime.serve.protocol.chat import ChatChunk, ChatCompletion, ChatRequest, Message
from awqkit_runtime.serve.routes.common import respond_with_events, service_of, streams
from awqkit_runtime.serve.service import Service
from awqkit_runtime.serve.streaming import unless_gone

router = APIRouter()


@router.post("/v1/chat/completions", responses=streams(ChatCompletion, ChatChunk))
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Continue a conversation with the assistant's next message."""
    service = service_of(request)
    service.require_model(body.model)
    service.require_choices(body.n or 1, param="n")
    params = _params(body, service)
    job = Job(service, "chat", body.n or 1)
    try:
        return await _answer(body, params, request, job, service)
    except BaseException:
        job.close()
        raise


async def _answer(
    body: ChatRequest, params: SamplingParams, request: Request, job: Job, service: Service
) -> Response:
    messages = [template_message(message) for message in body.messages]
    prompt = await unless_gone(request, service.encoder.encode_chat(messages))
    job.submit([prompt], params)
    answer = ChatAnswer(job, body, service.token_texts)
    if body.stream:
        return await respond_with_events(request, job, answer.chunks())
    whole = await unless_gone(request, answer.whole())
    job.close()
    return JSONResponse(whole.model_dump())


def template_message(message: Message) -> dict[str, Any]:
    """A message as chat templates know it."""
    role = "system" if message.role == "developer" else message.role
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    told: dict[str, Any] = {"role": role, "content": text}
    if message.name is not None:
        told["name"] = message.name
    return told


def _params(body: ChatRequest, service: Service) -> SamplingParams:
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return body.sampling(
        service.encoder.text.chat_defaults,
        max_tokens=wanted,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
