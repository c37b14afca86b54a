"""Answers that end with their client: server-sent events, and work that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from awqkit_runtime.serve.errors import ClientGoneError

T = TypeVar("T")

#: The end of a stream, in OpenAI's way.
DONE = "data: [DONE]\n\n"
#: Seconds behind the deadline to say that it has passed, before the connection is cut.
_FAREWELL_SECONDS = 5.0


def event(body: BaseModel, *, name: str | None = None) -> str:
    """One server-sent event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {body.model_dump_json(exclude_unset=True)}\n\n"


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled when the client leaves, and ClientGoneError raised."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        await _cancel(working, leaving)


class EventStream(Response):
    """Server-sent events, while the client listens; `close` is called whatever happens."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str], close: Callable[[], None], deadline: float):
        """deadline: by the event loop's clock; a client that does not read is cut off then."""
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._close = close
        self._deadline = deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            remaining = self._deadline - asyncio.get_running_loop().time()
            await asyncio.wait(
                {writing, leaving},
                return_when=asyncio.FIRST_COMPLETED,
                timeout=max(remaining, 0) + _FAREWELL_SECONDS,
            )
            if writing.done():
                writing.result()
        finally:
            await _cancel(writing, leaving)
            await self._events.aclose()
            self._close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for text in self._events:
            body = text.encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _left(receive: Receive) -> None:
    """Returns when the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
