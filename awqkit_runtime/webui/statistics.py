"""What a line under the conversation says: time to the first token, speed, cache use."""

from __future__ import annotations

import time
import urllib.error
import urllib.request

from awqkit_runtime.remote import Piece

#: The share of the KV cache's pages in use, among the server's metrics.
CACHE_METRIC = "awqkit_cache_usage_ratio"
METRICS_SECONDS = 2.0


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
            parts.append(f"cache {cache:.0%} in use")
        return " · ".join(parts)


def cache_use(base_url: str) -> float | None:
    """The share of a server's cache in use, from /metrics; None where it does not tell."""
    url = base_url.removesuffix("/v1") + "/metrics"
    try:
        with urllib.request.urlopen(url, timeout=METRICS_SECONDS) as response:
            lines = response.read().decode().splitlines()
    except (OSError, urllib.error.URLError, UnicodeDecodeError):
        return None
    found = [line.split() for line in lines if line.startswith(CACHE_METRIC)]
    return float(found[0][-1]) if found else None
