"""What a line under the conversation says: time to the first token, speed, cache use."""

from __future__ import annotations

import time
import urllib.request

from awqkit_runtime.remote import Piece

#: The share of the KV cache's pages in use, among the server's metrics.
CACHE_METRIC = "awqkit_cache_usage_ratio"
METRICS_SECONDS = 2.0
ASK_SECONDS = 1.0


class AnswerClock:
    """Measures one answer from the moment the clock is made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first: float | None = None
        self._last = self._start
        self._tokens = 0
        self._counted: int | None = None
        self._prompt: int | None = None

    def saw(self, piece: Piece) -> None:
        """One event of the stream. A piece of text counts as a token until the server counts."""
        if piece.text:
            self._last = time.perf_counter()
            self._first = self._first or self._last
            self._tokens += 1
        if piece.completion_tokens is not None:
            self._counted = piece.completion_tokens
            self._prompt = piece.prompt_tokens

    def line(self, cache: float | None = None) -> str:
        """The measurements in words; cache: share of the pages in use, None where unknown."""
        parts: list[str] = []
        tokens = self._counted or self._tokens
        if self._first is not None:
            parts.append(f"first token after {self._first - self._start:.2f} s")
            seconds = self._last - self._first
            if tokens > 1 and seconds > 0:
                parts.append(f"{(tokens - 1) / seconds:.1f} tokens/s")
        if self._counted is not None:
            parts.append(f"{self._prompt} + {self._counted} tokens")
        if cache is not None:
            parts.append(f"cache {cache:.1%} in use")
        return " · ".join(parts)


class CacheWatch:
    """The share of a server's cache in use, asked for now and then while an answer comes."""

    def __init__(self, base_url: str, api_key: str | None) -> None:
        """base_url: of the API, ending in /v1."""
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        url = base_url.removesuffix("/v1") + "/metrics"
        self._request = urllib.request.Request(url, headers=headers)
        self._share: float | None = None
        self._next = 0.0

    def share(self) -> float | None:
        """0…1, at most ASK_SECONDS old; None where the server does not tell."""
        if time.perf_counter() >= self._next:
            self._share = self._ask()
            told = self._share is not None
            self._next = time.perf_counter() + ASK_SECONDS if told else float("inf")
        return self._share

    def _ask(self) -> float | None:
        try:
            with urllib.request.urlopen(self._request, timeout=METRICS_SECONDS) as response:
                lines = response.read().decode().splitlines()
        except (OSError, UnicodeDecodeError):
            return None
        found = [line.split() for line in lines if line.startswith(CACHE_METRIC)]
        return float(found[0][-1]) if found else None
