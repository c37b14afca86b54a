"""From scheduled chunks to logits: one pass of the decoder over a mixed batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit_runtime.cache.paged_attention import PagedAttention, SequenceSpan
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine.launched_step import LaunchedStep, sampled_step
from awqkit_runtime.engine.scheduler import Chunk
from awqkit_runtime.errors import NumericsError
from awqkit_runtime.layers.attention import AttentionState

_NONE: Mapping[int, int] = {}


class DecoderModel(Protocol):
    """What the runner needs of a model."""

    @property
    def config(self) -> DecoderConfig: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def session_len(self) -> int: ...
    def hidden(self, token_ids: Tensor, positions: Tensor, state: AttentionState) -> Tensor: ...
    def logits(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class StepInputs:
    """The new tokens of a step, sequence by sequence, and where each sequence's pages are."""

    token_ids: list[int]
    positions: list[int]
    spans: list[SequenceSpan]


class Runner:
    """Runs a decoder over chunks whose keys and values live in the pages of a pool."""

    can_follow: ClassVar[bool] = True

    def __init__(self, decoder: DecoderModel, pool: PagePool) -> None:
        self.decoder = decoder
        self.pool = pool

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Logits, float32 [rows, vocab], one row for each chunk that samples, in their order.

        NumericsError when they are not finite.
        """
        return self._logits(chunks, step_inputs(chunks))

    @torch.inference_mode()
    def launch(self, chunks: Sequence[Chunk], previous: LaunchedStep | None) -> LaunchedStep:
        """Enqueues a step; chunks that follow take their token from the step before it."""
        inputs = step_inputs(chunks, _tokens_of(previous))
        return sampled_step(self._logits(chunks, inputs), chunks)

    def _logits(self, chunks: Sequence[Chunk], inputs: StepInputs) -> Tensor:
        hidden = self.hidden(inputs)
        ends = accumulate(chunk.length for chunk in chunks)
        rows = [end - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.samples]
        if not rows:
            return hidden.new_empty((0, self.decoder.config.vocab_size), dtype=torch.float32)
        return require_finite(self.decoder.logits(hidden[rows]), self.decoder)

    @torch.inference_mode()
    def hidden(self, inputs: StepInputs) -> Tensor:
        """Of every token of the step, [tokens, hidden]."""
        state = PagedAttention(self.pool, inputs.spans, config=self.decoder.config)
        device = self.decoder.device
        return self.decoder.hidden(
            torch.tensor(inputs.token_ids, device=device),
            torch.tensor(inputs.positions, device=device),
            state,
        )


def _tokens_of(step: LaunchedStep | None) -> dict[int, int]:
    """What a step samples, by the request's number."""
    if step is None:
        return {}
    tokens = zip(step.requests, step.token_ids.tolist(), strict=True)
    return {request.request_id: token for request, token in tokens}


def step_inputs(chunks: Sequence[Chunk], followed: Mapping[int, int] = _NONE) -> StepInputs:
    """What the decoder gets for these chunks; followed: the tokens that chunks follow."""
    ends = accumulate(chunk.length for chunk in chunks)
    return StepInputs(
        token_ids=[
            token
            for c in chunks
            for token in (
                [followed[c.request.request_id]] if c.follows else c.request.tokens(c.start, c.end)
            )
        ],
        positions=[position for c in chunks for position in range(c.start, c.start + c.length)],
        spans=[
            SequenceSpan(
                start=end - chunk.length,
                length=chunk.length,
                context=chunk.start,
                pages=tuple(chunk.request.pages),
            )
            for chunk, end in zip(chunks, ends, strict=True)
        ],
    )


def require_finite(logits: Tensor, decoder: DecoderModel) -> Tensor:
    """The logits themselves; NumericsError when they are not finite."""
    if not logits.isfinite().all():
        raise NumericsError(
            f"The model gave logits that are not finite in {decoder.dtype}. Its numbers "
            "overflow that dtype, or its weights are damaged; try dtype='bfloat16' or "
            "'float32'."
        )
    return logits
