"""What keeps a server bounded: how many answers it has open, and how large a body may be."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from awqkit_runtime.serve.errors import ApiError
from awqkit_runtime.serve.refusal import refuse_unread

#: Seconds that a body may take to arrive.
_BODY_SECONDS = 30.0
#: Bodies of the largest size that are held at once; as many bytes may be spread over more.
_LARGEST_BODIES = 64
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
    """ASGI middleware: reads a request's body before anybody else does, if there is room for it."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        #: Bytes of all bodies that are here, those of requests under way included.
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            if await self._read(body, scope, receive):
                await self._app(scope, _replay(bytes(body), receive), send)
        except ApiError as error:  # The body's; the application answers its own.
            await refuse_unread(error, receive, send)
        finally:
            self._held -= len(body)

    async def _read(self, body: bytearray, scope: Scope, receive: Receive) -> bool:
        """Fills `body`; False when the client left before its end.

        ApiError where it is too long or too slow.
        """
        self._require_room(_announced(scope))
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while (message := await receive())["type"] != "http.disconnect":
                    piece = message.get("body", b"")
                    body += piece
                    self._held += len(piece)
                    self._require_room(len(body))
                    if not message.get("more_body", False):
                        return True
        except TimeoutError:
            raise ApiError(
                408, f"The body did not arrive within {_BODY_SECONDS:g} seconds."
            ) from None
        return False

    def _require_room(self, length: int) -> None:
        """ApiError for a body of so many bytes, or for one too many."""
        if length > self._max_bytes:
            raise ApiError(
                413,
                f"The body has more than {self._max_bytes} bytes, the most that this server takes.",
            )
        if self._held > self._max_bytes * _LARGEST_BODIES:
            raise ApiError(
                429,
                "The server holds as many large requests as it can. Try again later.",
                code="queue_full",
                headers={"retry-after": "1"},
            )


def _announced(scope: Scope) -> int:
    """Bytes that the body is to have, by its header; 0 where that does not say."""
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if lengths else 0


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, and then what really comes."""
    rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replaying() -> Message:
        return rest.pop() if rest else await receive()

    return replaying
