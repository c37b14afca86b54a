"""A connection that must say soon what it wants."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds from connecting to the end of the first request's head. Between requests uvicorn's own,
#: shorter patience holds, and for bodies that of LimitBody.
HEAD_SECONDS = 10.0


class PromptConnection(H11Protocol):
    """HTTP/1.1 with bounded heads; a connection that only sits there is closed."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()
