"""Bearer tokens, compared in constant time, in front of everything but what is named open."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from awqkit_runtime.serve.errors import ApiError
from awqkit_runtime.serve.refusal import refuse_unread

_SCHEME = b"bearer "


class RequireKey:
    """ASGI middleware: a request for a path that is not in `open_paths` needs one of the keys.

    Paths are compared as the router sees them, whole: there is nothing to be had by spelling one
    differently.
    """

    def __init__(self, app: ASGIApp, *, keys: Collection[str], open_paths: Collection[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open_paths or self._knows(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "This server wants an API key: send the header `Authorization: Bearer KEY`.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
        await refuse_unread(error, receive, send)

    def _knows(self, scope: Scope) -> bool:
        """Whether one of the keys came.

        Every key is compared, and by its digest, so that time tells neither which one is near
        nor how long they are.
        """
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1 or given[0][: len(_SCHEME)].lower() != _SCHEME:
            return False
        token = given[0][len(_SCHEME) :].strip()
        matches = [hmac.compare_digest(_digest(token), known) for known in self._digests]
        return any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
