"""What the endpoints that generate have in common."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, cast

from fastapi import Request
from pydantic import BaseModel

from awqkit_runtime.serve.errors import ApiError, ErrorResponse
from awqkit_runtime.serve.job import Job
from awqkit_runtime.serve.protocol.responses import error_event
from awqkit_runtime.serve.service import Service
from awqkit_runtime.serve.streaming import DONE, EventStream, event, unless_gone

_ERRORS = {
    400: "The request is wrong.",
    401: "A key is missing or wrong.",
    404: "There is no such model or path.",
    408: "The body took too long.",
    413: "The body is too large.",
    429: "The queue is full; Retry-After says when to come again.",
    500: "The server failed.",
    503: "The engine has stopped.",
    504: "The answer took too long.",
}

#: For the schema: how an endpoint may fail.
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text} for status, text in _ERRORS.items()
} | {"default": {"model": ErrorResponse, "description": "Any other failure."}}


def streams(answer: type[BaseModel], chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """For the schema: an endpoint that answers at once, or with server-sent events."""
    return {
        200: {
            "model": answer,
            "description": f"The answer; with `stream`, events of {chunk.__name__}.",
            # No type: some readers of a schema take the stream as text, others as its events.
            "content": {"text/event-stream": {"schema": {"description": "Server-sent events."}}},
        },
        **FAILURES,
    }


def service_of(request: Request) -> Service:
    return cast(Service, request.app.state.service)


async def respond_with_events(
    request: Request, job: Job, chunks: AsyncGenerator[BaseModel]
) -> EventStream:
    """Starts a stream once its first chunk is there, so that early failures have a status."""
    return await _respond(request, job, chunks, named=False)


async def respond_with_named_events(
    request: Request, job: Job, chunks: AsyncGenerator[BaseModel]
) -> EventStream:
    """The same for events that carry the name of their type, and whose last one is the end."""
    return await _respond(request, job, chunks, named=True)


async def _respond(
    request: Request, job: Job, chunks: AsyncGenerator[BaseModel], *, named: bool
) -> EventStream:
    first = await unless_gone(request, anext(chunks))
    return EventStream(_events(first, chunks, named=named), job.close, job.deadline)


async def _events(
    first: BaseModel, chunks: AsyncGenerator[BaseModel], *, named: bool
) -> AsyncGenerator[str]:
    number = 0

    def told(chunk: BaseModel) -> str:
        return event(chunk, name=str(getattr(chunk, "type", "")) if named else None)

    try:
        yield told(first)
        async for chunk in chunks:
            number += 1
            yield told(chunk)
        if not named:
            yield DONE
    except ApiError as error:
        detail = error.body.error
        yield told(error_event(detail, number + 1) if named else error.body)
    finally:
        await chunks.aclose()
