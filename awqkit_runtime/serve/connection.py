"""A connection that must say soon what it wants, and read what it asked for."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds from connecting, or from an answer's end, to the end of the next request's head. A
#: connection that says nothing at all has uvicorn's shorter patience, a body that of LimitBody.
HEAD_SECONDS = 10.0
#: Seconds that a client may take no byte of an answer that is due.
READ_SECONDS = 60.0


class PromptConnection(H11Protocol):
    """HTTP/1.1 that is closed on clients that only sit there, whichever side should speak."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._stalled: asyncio.TimerHandle | None = None
        self._waiting = self.loop.call_later(HEAD_SECONDS, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.cancel()
        self._cancel_stalled()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._waiting.cancel()
        self._waiting = self.loop.call_later(HEAD_SECONDS, self._close_if_idle)
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._cancel_stalled()
        self._stalled = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._cancel_stalled()
        super().resume_writing()

    def _cancel_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()

    def _close_if_idle(self) -> None:
        """close() first sends what is left of an answer, for which nobody waits forever."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
            self._waiting = self.loop.call_later(READ_SECONDS, self.transport.abort)
