"""From scheduled chunks to logits: one pass of the decoder over a mixed batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar, Protocol

import numpy
import torch
from torch import Tensor

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit_runtime.cache.paged_attention import PagedAttention, SequenceSpan
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine.host_arrays import to_device
from awqkit_runtime.engine.launched_step import (
    LaunchedStep,
    finite_rows,
    not_finite,
    sampled_step,
)
from awqkit_runtime.engine.scheduler import Chunk
from awqkit_runtime.layers.attention import AttentionState


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
    def head_product(self, hidden: Tensor) -> Tensor: ...
    def logits(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class StepInputs:
    """The new tokens of a step, sequence by sequence, and where each sequence's pages are.

    A token that the step before samples, and that the host does not know yet, is 0.
    """

    token_ids: list[int]
    positions: list[int]
    spans: list[SequenceSpan]
    #: Of tokens that the step before samples: their place in token_ids, and their row in that step.
    followed: list[tuple[int, int]] = field(default_factory=list)


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
        return require_finite(self._logits(self.hidden(step_inputs(chunks)), chunks), self.decoder)

    @torch.inference_mode()
    def launch(self, chunks: Sequence[Chunk], previous: LaunchedStep | None = None) -> LaunchedStep:
        """Enqueues a step and the sampling of its tokens, and waits for nothing.

        previous: the step before, of which chunks that follow take their token.
        """
        inputs = step_inputs(chunks, previous)
        hidden = self.hidden(inputs, None if previous is None else previous.token_ids)
        return self._sampled(self._logits(hidden, chunks), chunks)

    @torch.inference_mode()
    def hidden(self, inputs: StepInputs, sampled: Tensor | None = None) -> Tensor:
        """Of every token of the step, [tokens, hidden].

        sampled: int64 [rows], the tokens of the step before, where some of these are followed.
        """
        arrays = [numpy.array(numbers) for numbers in (inputs.token_ids, inputs.positions)]
        token_ids, positions = to_device(arrays, self.decoder.device)
        if inputs.followed:
            assert sampled is not None
            token_ids = _with_sampled(token_ids, inputs.followed, sampled)
        state = PagedAttention(self.pool, inputs.spans, config=self.decoder.config)
        return self.decoder.hidden(token_ids, positions, state)

    def _sampled(self, logits: Tensor, chunks: Sequence[Chunk]) -> LaunchedStep:
        """The step whose logits these are."""
        return self._delivered(sampled_step(logits, chunks, dtype=self.decoder.dtype))

    def _delivered(self, step: LaunchedStep) -> LaunchedStep:
        """What is given away of a step."""
        return step

    def _logits(self, hidden: Tensor, chunks: Sequence[Chunk]) -> Tensor:
        ends = accumulate(chunk.length for chunk in chunks)
        rows = [end - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.samples]
        if not rows:
            return hidden.new_empty((0, self.decoder.config.vocab_size), dtype=torch.float32)
        if len(rows) < hidden.shape[0]:
            hidden = hidden.index_select(0, *to_device([numpy.array(rows)], hidden.device))
        return self.decoder.logits(hidden)


def step_inputs(chunks: Sequence[Chunk], previous: LaunchedStep | None = None) -> StepInputs:
    """What the decoder gets for these chunks, behind the step in flight."""
    ends = list(accumulate(chunk.length for chunk in chunks))
    return StepInputs(
        token_ids=[token for chunk in chunks for token in known_tokens(chunk)],
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
        followed=[
            (end - 1, row)
            for end, row in zip(ends, rows_followed(chunks, previous), strict=True)
            if row >= 0
        ],
    )


def known_tokens(chunk: Chunk) -> list[int]:
    """A chunk's tokens; 0 for one that the step before samples."""
    if chunk.follows:
        return [0]
    return chunk.request.tokens(chunk.start, chunk.start + chunk.length)


def rows_followed(chunks: Sequence[Chunk], previous: LaunchedStep | None) -> list[int]:
    """For each chunk the row of previous that samples its token; −1 where that is known.

    ValueError where a chunk follows what no step samples.
    """
    if previous is not None and _follow_all(chunks, previous):
        return list(range(len(chunks)))
    rows = {} if previous is None else {id(r): row for row, r in enumerate(previous.requests)}
    found = [rows.get(id(chunk.request), -1) if chunk.follows else -1 for chunk in chunks]
    if any(chunk.follows and row < 0 for chunk, row in zip(chunks, found, strict=True)):
        raise ValueError("a chunk follows a token that the step before does not sample")
    return found


def _follow_all(chunks: Sequence[Chunk], previous: LaunchedStep) -> bool:
    """Whether the same requests go on in the same order, as they do in most steps."""
    requests = tuple([chunk.request for chunk in chunks])
    return requests == previous.requests and all(chunk.follows for chunk in chunks)


def _with_sampled(
    token_ids: Tensor, followed: Sequence[tuple[int, int]], sampled: Tensor
) -> Tensor:
    """token_ids [tokens] with those of the step before in place."""
    arrays = [numpy.array(numbers) for numbers in zip(*followed, strict=True)]
    places, rows = to_device(arrays, token_ids.device)
    return token_ids.index_copy(0, places, sampled.index_select(0, rows))


def require_finite(logits: Tensor, decoder: DecoderModel) -> Tensor:
    """The logits themselves; NumericsError when they are not finite. Waits for the device."""
    if not finite_rows(logits).all():
        raise not_finite(decoder.dtype)
    return logits
