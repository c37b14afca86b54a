"""A device that computes as late as it may, and whose answers show every slot that was read.

Its cache holds tokens with their positions; a sampled token is a hash of all that its sequence's
slots hold. So an answer is the right one only if every slot held the right token when it was read,
bit for bit, whatever else was computed and when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from awqkit_runtime.cache.page_format import PAGE_TOKENS
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine.runner import DecoderModel
from awqkit_runtime.engine.sampler import SampledToken, needs_known_tokens
from awqkit_runtime.engine.scheduler import Chunk
from tests.engine.fakes import VOCAB


class _Row:
    """A chunk as the host knew it at launch: later changes do not reach the device."""

    def __init__(self, chunk: Chunk) -> None:
        request = chunk.request
        self.request_id = request.request_id
        self.start, self.end, self.samples = chunk.start, chunk.end, chunk.samples
        self.follows = chunk.follows
        assert not chunk.follows or chunk.length == 1
        self.tokens = [] if chunk.follows else request.tokens(chunk.start, chunk.end)
        self.pages = tuple(request.pages)
        self.seed = 0 if request.params.greedy else request.seed
        #: What a penalty would be taken for.
        self.known = tuple(request.output_token_ids) if needs_known_tokens(request) else ()

    def slot(self, position: int) -> int:
        return self.pages[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS


class LateStep:
    def __init__(self, device: LateDevice, chunks: Sequence[Chunk], previous: Any) -> None:
        self.requests = tuple(chunk.request for chunk in chunks if chunk.samples)
        self.rows = [_Row(chunk) for chunk in chunks]
        #: Request's number -> its token, once it is computed.
        self.sampled: dict[int, int] = {}
        self._device, self._previous = device, previous

    def compute(self, memory: list[tuple[int, int] | None]) -> None:
        for row in self.rows:
            tokens = [self._previous.sampled[row.request_id]] if row.follows else row.tokens
            for position, token in enumerate(tokens, start=row.start):
                memory[row.slot(position)] = position, token
        for row in self.rows:
            if row.samples:
                held = tuple(memory[row.slot(position)] for position in range(row.end))
                assert None not in held
                self.sampled[row.request_id] = hash((held, row.seed, row.known)) % VOCAB

    def collect(self) -> list[SampledToken]:
        self._device.catch_up(self)
        self._device.trouble("collect")
        tokens = [self.sampled[request.request_id] for request in self.requests]
        return [SampledToken(token_id=token, logprobs=None) for token in tokens]


class LateDevice:
    """Computes steps in the order of their launch, each when it or a later one is collected.

    trouble: is told where the host is ("launch", "launched", "collect"), and may raise.
    """

    can_follow: ClassVar[bool] = True

    def __init__(
        self,
        decoder: DecoderModel,
        pool: PagePool,
        *,
        trouble: Callable[[str], None] = lambda place: None,
    ) -> None:
        self.trouble = trouble
        #: Steps that were launched behind one that was not computed yet.
        self.followers = 0
        self._memory: list[tuple[int, int] | None] = [None] * (pool.num_pages * PAGE_TOKENS)
        self._queue: list[LateStep] = []

    def launch(self, chunks: Sequence[Chunk], previous: Any) -> Any:
        self.trouble("launch")
        step = LateStep(self, chunks, previous)
        self.followers += bool(self._queue)
        self._queue.append(step)
        self.trouble("launched")
        return step

    def catch_up(self, last: LateStep) -> None:
        while last in self._queue:
            self._queue.pop(0).compute(self._memory)

    def run(self, chunks: Sequence[Chunk]) -> Any:
        raise NotImplementedError("it samples, too")
