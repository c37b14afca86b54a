"""Rank 0's runners: they tell the other ranks of each step before they compute their share of it.

Steps are launched ahead as by any runner. The tokens of a step stay on the devices: all ranks
choose them together in a graph, or rank 0 samples them and gives them away.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from torch import Tensor

from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine.cuda_graphs import GraphCapture
from awqkit_runtime.engine.decode_inputs import DecodeNumbers
from awqkit_runtime.engine.graph_runner import GraphRunner
from awqkit_runtime.engine.greedy_choice import ChooseLikeliest
from awqkit_runtime.engine.launched_step import LaunchedStep, Outcome
from awqkit_runtime.engine.parallel.messages import DecodeStep, SampledTokens
from awqkit_runtime.engine.parallel.team import Team
from awqkit_runtime.engine.runner import DecoderModel, Runner, StepInputs
from awqkit_runtime.engine.scheduler import Chunk


class LeadingRunner(Runner):
    """A Runner whose steps all ranks compute. RankError when one of them is gone."""

    def __init__(self, decoder: DecoderModel, pool: PagePool, team: Team) -> None:
        """The other ranks must have been told of the cache."""
        Runner.__init__(self, decoder, pool)
        self._team = team

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        with _as_one(self._team):
            return super().run(chunks)

    def launch(self, chunks: Sequence[Chunk], previous: LaunchedStep | None = None) -> LaunchedStep:
        with _as_one(self._team):
            return super().launch(chunks, previous)

    def hidden(self, inputs: StepInputs, sampled: Tensor | None = None) -> Tensor:
        self._team.tell(inputs)
        return super().hidden(inputs, sampled)

    def require_ranks(self) -> None:
        """RankError where another rank has ended, also while nothing is computed."""
        self._team.require_all()

    def _sampled(self, logits: Tensor, chunks: Sequence[Chunk]) -> LaunchedStep:
        step = super()._sampled(logits, chunks)
        if step.requests:
            self._team.tell(SampledTokens(count=len(step.requests)))
            self._team.communicator.sum_(step.token_ids)  # The others add zeros.
        return step

    def _delivered(self, step: LaunchedStep) -> LaunchedStep:
        return replace(step, outcome=_SharedOutcome(step.outcome, self._team))


class LeadingGraphRunner(LeadingRunner, GraphRunner):
    """A GraphRunner whose steps all ranks compute."""

    def __init__(
        self,
        decoder: DecoderModel,
        pool: PagePool,
        team: Team,
        graphs: GraphCapture,
        *,
        max_rows: int,
        choose: ChooseLikeliest,
    ) -> None:
        """choose: what all ranks choose tokens by, together."""
        GraphRunner.__init__(self, decoder, pool, graphs, max_rows=max_rows, choose=choose)
        self._team = team

    def decode(self, step: DecodeNumbers, *, greedy: bool) -> None:
        self._team.tell(DecodeStep(numbers=step, greedy=greedy))
        super().decode(step, greedy=greedy)


class _SharedOutcome(Outcome):
    """One that means nothing where a rank is gone."""

    def __init__(self, outcome: Outcome, team: Team) -> None:
        self._outcome = outcome
        self._team = team

    def wait(self) -> tuple[list[int], list[int]]:
        try:
            found = self._outcome.wait()
        except RuntimeError as error:
            self._team.raise_if_ended(error)
            raise
        self._team.require_all()
        return found


@contextmanager
def _as_one(team: Team) -> Iterator[None]:
    """What is done inside is done by all ranks, or there is no team any more."""
    with _uninterrupted():
        try:
            yield
        except RuntimeError as error:
            team.raise_if_ended(error)
            team.close()  # Nobody knows how far the others are.
            raise


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
