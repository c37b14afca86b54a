"""What keeps a server bounded: how many answers it has open, and how large a body may be."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from awqkit_runtime.serve.errors import ApiError

#: Seconds that a body may take to arrive.
_BODY_SECONDS = 30.0
#: Answers whose ends tell how fast places become free.
_RECENT = 32
_LONGEST_WAIT = 60


class Admission:
    """Places for answers: those that run and those that wait."""

    def __init__(self, places: int, *, clock: Callable[[], float]) -> None:
        self.places = places
        self.taken = 0
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=_RECENT)

    def take(self, count: int) -> None:
        """Takes places, before any work is done for them; ApiError with status 429 if too few."""
        if self.taken + count > self.places:
            raise ApiError(
                429,
                f"The server has {self.taken} answers to give already, and takes no more than "
                f"{self.places}. Try again later.",
                code="queue_full",
                headers={"retry-after": str(self._wait(count))},
            )
        self.taken += count

    def give_back(self, count: int) -> None:
        self.taken -= count
        self._ends.extend([self._clock()] * min(count, _RECENT))

    def _wait(self, count: int) -> int:
        """Seconds until so many places should be free, by the pace of late."""
        if len(self._ends) < 2:
            return 1
        pace = (self._clock() - self._ends[0]) / len(self._ends)
        return min(max(math.ceil(pace * count), 1), _LONGEST_WAIT)


class LimitBody:
    """ASGI middleware: reads a request's body before anybody else does, if it is short enough."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await self._read(receive)
        except TimeoutError:
            error = ApiError(408, f"The body did not arrive within {_BODY_SECONDS:g} seconds.")
            await error.response()(scope, receive, send)
            return
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None when the client left before its end. ApiError for one that is too long."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise ApiError(
                    413,
                    f"The body has more than {self._max_bytes} bytes, the most that this server "
                    "takes.",
                    # What is left of the body is not read, so the connection cannot go on.
                    headers={"connection": "close"},
                )
            if not message.get("more_body", False):
                return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, and then what really comes."""
    rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replaying() -> Message:
        return rest.pop() if rest else await receive()

    return replaying
