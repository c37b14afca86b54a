"""Answers to requests whose bodies nobody will read."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import Receive, Send

from awqkit_runtime.serve.errors import ApiError

#: Seconds that a client may go on sending before it is cut off.
_LINGER_SECONDS = 5.0


async def refuse_unread(error: ApiError, receive: Receive, send: Send) -> None:
    """Says no before the body is there, and throws away what still comes.

    A connection that is closed with bytes unread takes the answer with it: the client would see
    that it was cut off, and not why.
    """
    response = error.response()
    response.headers["connection"] = "close"
    start = {"type": "http.response.start", "status": error.status, "headers": response.raw_headers}
    await send(start)
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})
