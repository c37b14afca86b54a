"""/v1/completions."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.serve.completion_answer import CompletionAnswer
from awqkit_runtime.serve.job import Job
from awqkit_runtime.serve.protocol.completions import (
    DEFAULT_MAX_TOKENS,
    CompletionBody,
    CompletionRequest,
)
from awqkit_runtime.serve.routes.common import respond_with_events, service_of, streams
from awqkit_runtime.serve.service import Service
from awqkit_runtime.serve.streaming import unless_gone

router = APIRouter(tags=["generation"])


@router.post("/v1/completions", responses=streams(CompletionBody, CompletionBody))
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continue one or several texts."""
    service = service_of(request)
    service.require_model(body.model)
    choices = (body.n or 1) * len(body.prompts())
    service.require_choices(choices, param="n")
    params = _params(body, service)
    job = Job(service, "completions", choices)
    try:
        prompts = await unless_gone(request, _encode(body, service))
        job.submit(prompts, params)
        echoes = [_echo(body, prompt, service) for prompt in body.prompts()]
        each = [echo for echo in echoes for _ in range(body.n or 1)]
        answer = CompletionAnswer(job, body, service.token_texts, each)
        if body.stream:
            return await respond_with_events(request, job, answer.chunks())
        whole = await unless_gone(request, answer.whole())
    except BaseException:
        job.close()
        raise
    job.close()
    return JSONResponse(whole.model_dump())


async def _encode(body: CompletionRequest, service: Service) -> list[list[int]]:
    encoder = service.encoder

    async def one(prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return await encoder.encode(prompt)
        return encoder.check_tokens(prompt)

    await encoder.check_grammar(body.constraint(), param=body.form_field)
    return await asyncio.gather(*map(one, body.prompts()))


def _echo(body: CompletionRequest, prompt: str | list[int], service: Service) -> str:
    if not body.echo:
        return ""
    return prompt if isinstance(prompt, str) else service.encoder.decode(prompt)


def _params(body: CompletionRequest, service: Service) -> SamplingParams:
    return body.sampling(
        service.encoder.text.chat_defaults,
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        logprobs=body.logprobs,
        grammar=body.constraint(),
    )
