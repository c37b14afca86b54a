"""Attention of a step's prompts over pages on CUDA, one planned call after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from awqkit_runtime.cache.int_arrays import IntArrays
from awqkit_runtime.cache.page_format import LayerPages
from awqkit_runtime.cache.prompt_plan import PromptCall, key_pieces
from awqkit_runtime.kernels.flash_attention import (
    PiecewiseSum,
    ragged_attention,
    square_attention,
)
from awqkit_runtime.kernels.page_gather import page_gather_


@dataclass(frozen=True, kw_only=True, eq=False)
class StepTensors:
    """What one layer attends with."""

    #: Of all rows of the step, in the frame of the pages: [rows, heads, head_dim].
    q: Tensor
    #: [rows, kv_heads, head_dim], read by calls that do not gather.
    k: Tensor
    v: Tensor
    pages: LayerPages
    #: The step's arrays, as IntArrays sent them.
    numbers: Tensor


class PreparedCall(Protocol):
    """A call of a plan whose numbers are among the arrays of the step."""

    call: PromptCall

    def attend(self, step: StepTensors) -> Tensor:
        """Of the call's rows, [queries, heads, head_dim]."""


def prepare_call(
    call: PromptCall, arrays: IntArrays, *, window: int | None, scale: float
) -> PreparedCall:
    """Adds the call's numbers to the arrays."""
    if call.square:
        return _SquareCall(call, arrays, scale=scale)
    if call.gathered and len(call.parts) == 1:
        pieces = key_pieces(call, window)
        if len(pieces) > 1:
            return _PiecewiseCall(call, pieces, arrays, scale=scale)
    return _RaggedCall(call, arrays, window=window, scale=scale)


class _Keys:
    """Where a call finds its keys and values."""

    def __init__(self, call: PromptCall, arrays: IntArrays) -> None:
        self._rows = None if call.gathered else call.key_rows
        self._places = [
            (arrays.add(part.span.pages), range(part.first_key, part.last_key))
            for part in call.parts
            if call.gathered
        ]

    def of(self, step: StepTensors) -> tuple[Tensor, Tensor]:
        """[keys, kv_heads, head_dim] each."""
        if self._rows is not None:
            return step.k[self._rows], step.v[self._rows]
        return _gather(step, self._places)


class _SquareCall:
    def __init__(self, call: PromptCall, arrays: IntArrays, *, scale: float) -> None:
        self.call = call
        self._keys = _Keys(call, arrays)
        self._scale = scale

    def attend(self, step: StepTensors) -> Tensor:
        shape = (len(self.call.parts), self.call.parts[0].num_queries)
        q, k, v = (
            x.unflatten(0, shape) for x in (step.q[self.call.query_rows], *self._keys.of(step))
        )
        return square_attention(q, k, v, scale=self._scale).flatten(0, 1)


class _RaggedCall:
    def __init__(
        self, call: PromptCall, arrays: IntArrays, *, window: int | None, scale: float
    ) -> None:
        self.call = call
        self._keys = _Keys(call, arrays)
        self._window = window
        self._scale = scale
        queries = [part.num_queries for part in call.parts]
        keys = [part.num_keys for part in call.parts]
        self._longest = (max(queries), max(keys))
        self._query_ends = arrays.add([0, *accumulate(queries)])
        self._key_ends = arrays.add([0, *accumulate(keys)])

    def attend(self, step: StepTensors) -> Tensor:
        k, v = self._keys.of(step)
        out, _ = ragged_attention(
            step.q[self.call.query_rows],
            k,
            v,
            step.numbers[self._query_ends],
            step.numbers[self._key_ends],
            self._longest,
            scale=self._scale,
            window=self._window,
        )
        return out


class _PiecewiseCall:
    """One part over more keys than may be gathered at once: over one piece after the other."""

    def __init__(
        self, call: PromptCall, pieces: Sequence[range], arrays: IntArrays, *, scale: float
    ) -> None:
        self.call = call
        self._scale = scale
        (part,) = call.parts
        self._pages = arrays.add(part.span.pages)
        self._query_ends = arrays.add([0, part.num_queries])
        self._pieces = [(piece, arrays.add([0, len(piece)])) for piece in pieces]

    def attend(self, step: StepTensors) -> Tensor:
        # All queries see all of a piece but the last, which ends with their own keys.
        (first, first_ends), *others = self._pieces
        total = PiecewiseSum(*self._attend_piece(step, first, first_ends))
        for piece, ends in others:
            total.add(*self._attend_piece(step, piece, ends))
        return total.result()

    def _attend_piece(self, step: StepTensors, piece: range, ends: slice) -> tuple[Tensor, Tensor]:
        q = step.q[self.call.query_rows]
        k, v = _gather(step, [(self._pages, piece)])
        return ragged_attention(
            q,
            k,
            v,
            step.numbers[self._query_ends],
            step.numbers[ends],
            (len(q), len(piece)),
            scale=self._scale,
            causal=piece.stop == self.call.parts[0].last_key,
        )


def _gather(step: StepTensors, places: Sequence[tuple[slice, range]]) -> tuple[Tensor, Tensor]:
    """Keys and values at positions of sequences, whose pages the arrays name, one after another."""
    form = step.pages.format
    lengths = [len(positions) for _, positions in places]
    shape = (sum(lengths), form.num_kv_heads, form.head_dim)
    k, v = (torch.empty(shape, dtype=form.dtype, device=step.q.device) for _ in range(2))
    parts = zip(places, k.split(lengths), v.split(lengths), strict=True)
    for (page_ids, positions), part_k, part_v in parts:
        page_gather_(step.pages, step.numbers[page_ids], positions.start, part_k, part_v)
    return k, v
