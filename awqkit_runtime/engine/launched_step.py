"""A step on its way through the device, and what it sampled once it is through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor

from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.sampler import SampledToken, sample
from awqkit_runtime.engine.scheduler import Chunk


@dataclass(frozen=True, kw_only=True, eq=False)
class LaunchedStep:
    """requests: those that sample, in order. token_ids: theirs, int64 [rows], on the device."""

    requests: tuple[Request, ...]
    token_ids: Tensor
    sampled: tuple[SampledToken, ...]

    def collect(self) -> list[SampledToken]:
        """Waits for the device; one token for each of `requests`.

        NumericsError when the step's logits are not finite.
        """
        return list(self.sampled)


class StepLauncher(Protocol):
    """What the engine asks for steps."""

    #: Whether a step may be launched while another is in flight, and follow it.
    can_follow: ClassVar[bool]

    def launch(self, chunks: Sequence[Chunk], previous: LaunchedStep | None) -> LaunchedStep:
        """Enqueues a step without waiting for it.

        previous: the step in flight, of which chunks that follow take their token.
        """


class LogitsRunner(Protocol):
    """A runner that gives the logits of a step."""

    can_follow: ClassVar[bool]

    def run(self, chunks: Sequence[Chunk]) -> Tensor: ...


class RunAtOnce:
    """Launches steps of a runner that cannot: each is over when it is launched."""

    can_follow: ClassVar[bool] = False

    def __init__(self, runner: LogitsRunner) -> None:
        self._runner = runner

    def launch(self, chunks: Sequence[Chunk], previous: LaunchedStep | None) -> LaunchedStep:
        """previous: none, since no step is ever in flight."""
        return sampled_step(self._runner.run(chunks), chunks)


def launcher(runner: LogitsRunner) -> StepLauncher:
    """The runner itself where it launches steps that others follow, else RunAtOnce around it."""
    return cast(StepLauncher, runner) if runner.can_follow else RunAtOnce(runner)


def sampled_step(logits: Tensor, chunks: Sequence[Chunk]) -> LaunchedStep:
    """logits: [rows, vocab], of the chunks that sample."""
    sampling = [chunk for chunk in chunks if chunk.samples]
    requests = tuple(chunk.request for chunk in sampling)
    lengths = [len(chunk.request.output_token_ids) + chunk.follows for chunk in sampling]
    tokens = sample(logits, requests, lengths)
    ids = torch.tensor([token.token_id for token in tokens], device=logits.device)
    return LaunchedStep(requests=requests, token_ids=ids, sampled=tuple(tokens))
