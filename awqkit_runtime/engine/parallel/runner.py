"""Rank 0's runner: tells the other ranks of each step before it computes its own share of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar

from torch import Tensor

from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.config import QuantPolicy
from awqkit_runtime.engine.parallel.messages import NewCache
from awqkit_runtime.engine.parallel.team import Team
from awqkit_runtime.engine.runner import DecoderModel, Runner, StepInputs
from awqkit_runtime.engine.scheduler import Chunk


class LeadingRunner(Runner):
    """A Runner whose steps all ranks compute. RankError when one of them is gone."""

    can_follow: ClassVar[bool] = False

    def __init__(
        self,
        decoder: DecoderModel,
        pool: PagePool,
        team: Team,
        *,
        quant_policy: QuantPolicy,
        noise: bool = False,
    ) -> None:
        """The other ranks get as many pages; noise: with random numbers in them."""
        super().__init__(decoder, pool)
        self._team = team
        team.tell(NewCache(num_pages=pool.num_pages, quant_policy=quant_policy, noise=noise))

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        with _uninterrupted():
            try:
                return super().run(chunks)
            except RuntimeError as error:
                self._team.raise_if_ended(error)
                raise

    def hidden(self, inputs: StepInputs) -> Tensor:
        self._team.tell(inputs)
        return super().hidden(inputs)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Lets Ctrl-C wait until all ranks are through; a step left halfway would part them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda *arguments: came.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came and callable(before):
            before(*came[0])
