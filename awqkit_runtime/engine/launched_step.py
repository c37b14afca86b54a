"""A step that the device may still be computing: what it samples, and how to wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

import torch
from torch import Tensor

from awqkit_runtime.engine.host_arrays import host_buffer
from awqkit_runtime.engine.logprobs import PendingLogprobs
from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.sampler import SampledToken, choose_tokens, collect_tokens
from awqkit_runtime.engine.scheduler import Chunk
from awqkit_runtime.errors import NumericsError

if TYPE_CHECKING:
    from awqkit_runtime.engine.runner import DecoderModel


class Outcome:
    """Tokens on their way from the device to the host, each with whether its logits were finite."""

    def __init__(self, values: Tensor) -> None:
        """values: int64 [rows, 2], contiguous; copied at once, in the order of the stream."""
        self._event = None
        if values.is_cuda:
            self._host = host_buffer(tuple(values.shape), values.dtype, values.device)
            self._host.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(values.device))
        else:
            self._host = values.clone()

    def wait(self) -> tuple[list[int], list[int]]:
        """Tokens, and 1 or 0 for each."""
        if self._event is not None:
            self._event.synchronize()
        tokens, finite = self._host.T.tolist()
        return tokens, finite


@dataclass(frozen=True, kw_only=True, eq=False)
class LaunchedStep:
    """The tokens that a step samples."""

    #: Those that get one, in order.
    requests: tuple[Request, ...]
    #: int64 [requests], on the runner's device; valid until the step behind it has been launched.
    token_ids: Tensor
    outcome: Outcome
    logprobs: PendingLogprobs | None
    #: What the model computes in, for the message where its numbers overflow.
    dtype: torch.dtype

    @torch.inference_mode()
    def collect(self) -> list[SampledToken]:
        """Waits for the device. NumericsError where the model's logits were not finite."""
        tokens, finite = self.outcome.wait()
        if not all(finite):
            raise not_finite(self.dtype)
        return collect_tokens(tokens, self.logprobs)


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

    @property
    def decoder(self) -> DecoderModel: ...
    def run(self, chunks: Sequence[Chunk]) -> Tensor: ...


class RunAtOnce:
    """Launches steps of a runner that cannot: each is over when it is launched."""

    can_follow: ClassVar[bool] = False

    def __init__(self, runner: LogitsRunner) -> None:
        self._runner = runner

    def launch(self, chunks: Sequence[Chunk], previous: LaunchedStep | None) -> LaunchedStep:
        """previous: none, since no step is ever in flight."""
        return sampled_step(self._runner.run(chunks), chunks, dtype=self._runner.decoder.dtype)


def launcher(runner: LogitsRunner) -> StepLauncher:
    """The runner itself where it launches steps that others follow, else RunAtOnce around it."""
    return cast(StepLauncher, runner) if runner.can_follow else RunAtOnce(runner)


@torch.inference_mode()
def sampled_step(logits: Tensor, chunks: Sequence[Chunk], *, dtype: torch.dtype) -> LaunchedStep:
    """logits: float32 [rows, vocab], of the chunks that sample. dtype: the model's."""
    sampling = [chunk for chunk in chunks if chunk.samples]
    requests = tuple([chunk.request for chunk in sampling])
    # What a chunk follows is a token of the answer that the request does not have yet.
    positions = [len(one.request.output_token_ids) + int(one.follows) for one in sampling]
    chosen = choose_tokens(logits, requests, positions)
    outcome = torch.stack((chosen.token_ids, finite_rows(logits)), dim=1)
    return LaunchedStep(
        requests=requests,
        token_ids=chosen.token_ids,
        outcome=Outcome(outcome),
        logprobs=chosen.logprobs,
        dtype=dtype,
    )


def finite_rows(logits: Tensor) -> Tensor:
    """int64 [rows]: 1 where all logits [rows, vocab] of a row are finite, else 0."""
    if not logits.shape[0]:
        return logits.new_empty(0, dtype=torch.int64)
    # Both bounds are NaN where any number is, so that nothing of the logits' size is made.
    low, high = logits.aminmax(dim=-1)
    # x − x is 0 for a finite x, and else NaN, which equals nothing.
    return ((low - low) == (high - high)).long()


def not_finite(dtype: torch.dtype) -> NumericsError:
    return NumericsError(
        f"The model gave logits that are not finite in {dtype}. Its numbers overflow that dtype, "
        "or its weights are damaged; try dtype='bfloat16' or 'float32'."
    )
