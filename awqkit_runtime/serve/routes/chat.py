"""/v1/chat/completions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.serve.chat_answer import ChatAnswer
from awqkit_runtime.serve.conversation import Conversation, read_conversation
from awqkit_runtime.serve.job import Job
from awqkit_runtime.serve.protocol.chat import ChatChunk, ChatCompletion, ChatRequest
from awqkit_runtime.serve.routes.common import respond_with_events, service_of, streams
from awqkit_runtime.serve.service import Service
from awqkit_runtime.serve.streaming import unless_gone

router = APIRouter(tags=["generation"])


@router.post("/v1/chat/completions", responses=streams(ChatCompletion, ChatChunk))
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Continue a conversation with the assistant's next message."""
    service = service_of(request)
    service.require_model(body.model)
    service.require_choices(body.n or 1, param="n")
    conversation = read_conversation(body, service)
    params = _params(body, conversation, service)
    job = Job(service, "chat", body.n or 1)
    try:
        prompt = await unless_gone(request, _encode(conversation, service))
        job.submit([prompt], params)
        answer = ChatAnswer(job, body, service.token_texts, conversation.reads)
        if body.stream:
            return await respond_with_events(request, job, answer.chunks())
        whole = await unless_gone(request, answer.whole())
    except BaseException:
        job.close()
        raise
    job.close()
    return JSONResponse(whole.model_dump(exclude_unset=True))


async def _encode(conversation: Conversation, service: Service) -> list[int]:
    for param, grammar in conversation.forms:
        await service.encoder.check_grammar(grammar, param=param)
    return await service.encoder.encode_chat(conversation.messages, conversation.tools)


def _params(body: ChatRequest, conversation: Conversation, service: Service) -> SamplingParams:
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    more: dict[str, Any] = {"grammar": conversation.grammar}
    if conversation.reads is not None:
        more["skip_special_tokens"] = False  # They may be what tells a call from text.
    return body.sampling(
        service.encoder.text.chat_defaults,
        max_tokens=wanted,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        **more,
    )
