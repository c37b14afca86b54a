"""One HTTP request on its way: its places, its deadline, its answers and its figures."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import asdict

from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.serve.errors import ApiError
from awqkit_runtime.serve.protocol.sampling import PromptTokensDetails, Usage
from awqkit_runtime.serve.service import Service
from awqkit_runtime.serve.worker.client import Answer
from awqkit_runtime.serve.worker.messages import Piece


class Job:
    """Holds places from its making to close(), which must be called and may be called again."""

    def __init__(self, service: Service, endpoint: str, choices: int) -> None:
        """ApiError with status 429 where the server has no places left."""
        service.admission.take(choices)
        self._service = service
        self._endpoint = endpoint
        self._choices = choices
        self._clock = asyncio.get_running_loop().time
        self._arrived = self._clock()
        self._answer: Answer | None = None
        self._first: float | None = None
        self._closed = False
        self._outcome = "abandoned"
        self._per_prompt = choices
        self.deadline = self._arrived + service.config.request_timeout
        self.id = secrets.token_hex(12)
        #: Seconds since the epoch.
        self.created = int(time.time())
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.cached_tokens = 0

    def submit(self, prompts: list[list[int]], params: SamplingParams) -> None:
        """Gives the prompts to the engine; the places are shared out evenly."""
        self.prompt_tokens = sum(len(prompt) for prompt in prompts)
        self._service.metrics.prompt_tokens.inc(self.prompt_tokens)
        self._per_prompt = self._choices // len(prompts)
        self._answer = self._service.engine.submit(prompts, asdict(params), self._per_prompt)

    async def pieces(self) -> AsyncIterator[Piece]:
        """What comes of all choices, mixed; ApiError where they end otherwise."""
        assert self._answer is not None, "submit() comes first"
        try:
            async for piece in self._answer.pieces(self.deadline):
                self._count(piece)
                yield piece
            self._outcome = "ok"
        except ApiError as error:
            self._outcome = {400: "refused", 504: "timeout"}.get(error.status, "failed")
            raise

    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.generated_tokens,
            total_tokens=self.prompt_tokens + self.generated_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self.cached_tokens),
        )

    def close(self) -> None:
        """Frees the places and, where it has not ended, what the engine holds."""
        if self._closed:
            return
        self._closed = True
        if self._answer is not None:
            self._answer.close()
        self._service.admission.give_back(self._choices)
        self._record()

    def _count(self, piece: Piece) -> None:
        if self._first is None:
            self._first = self._clock()
            self._service.metrics.first_token.observe(self._first - self._arrived)
        self.generated_tokens += len(piece.token_ids)
        if piece.finish_reason is not None and piece.choice % self._per_prompt == 0:
            self.cached_tokens += piece.cached_tokens

    def _record(self) -> None:
        metrics, now = self._service.metrics, self._clock()
        metrics.requests.labels(self._endpoint, self._outcome).inc()
        metrics.generated_tokens.inc(self.generated_tokens)
        metrics.duration.observe(now - self._arrived)
        later = self.generated_tokens - self._choices
        if self._first is not None and later > 0:
            metrics.per_token.observe((now - self._first) * self._choices / later)
