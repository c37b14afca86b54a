"""/v1/responses."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from awqkit_runtime.serve.job import Job
from awqkit_runtime.serve.protocol.responses import ResponseBody, ResponseEvent, ResponseRequest
from awqkit_runtime.serve.response_answer import ResponseAnswer
from awqkit_runtime.serve.routes.common import respond_with_named_events, service_of, streams
from awqkit_runtime.serve.service import Service
from awqkit_runtime.serve.streaming import unless_gone

router = APIRouter(tags=["generation"])


@router.post("/v1/responses", responses=streams(ResponseBody, ResponseEvent))
async def create_response(body: ResponseRequest, request: Request) -> Response:
    """Answer a text or a conversation; nothing is stored."""
    service = service_of(request)
    service.require_model(body.model)
    params = body.sampling(
        service.encoder.text.chat_defaults,
        max_tokens=body.max_output_tokens,
        grammar=body.constraint(),
    )
    job = Job(service, "responses", 1)
    try:
        job.submit([await unless_gone(request, _encode(body, service))], params)
        answer = ResponseAnswer(job, body, params)
        if body.stream:
            return await respond_with_named_events(request, job, answer.events())
        whole = await unless_gone(request, answer.whole())
    except BaseException:
        job.close()
        raise
    job.close()
    return JSONResponse(whole.model_dump())


async def _encode(body: ResponseRequest, service: Service) -> list[int]:
    await service.encoder.check_grammar(body.constraint(), param=body.form_field)
    return await service.encoder.encode_chat(body.messages(), None)
