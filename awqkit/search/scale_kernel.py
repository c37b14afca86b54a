"""What rounding to nearest costs under many scales, on a GPU: errors written as 16 bits, once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE, MAX_CODE
from awqkit.search.equilibrium import Equilibrated, power_above
from awqkit.search.grid_kernel import grid_for_range, rounding_error
from awqkit.search.moments import FORM_COLUMNS
from awqkit.search.products import half_product

#: Rows of a group that one program rounds, and its warps.
ROWS_AT_ONCE, WARPS = 32, 4
#: Programs that sum up, and the elements that each looks at together.
PARTS, ELEMENTS_AT_ONCE = 512, 2048
#: More than half a step, by as much as storing its size can take off the range.
LARGEST_ERROR = 0.6


class RoundingLosses:
    """The output errors of some linears [out_i, in] that read one input, by its scale."""

    def __init__(self, weights: Sequence[Tensor], gram: Tensor) -> None:
        """weights: float32.  gram: of the unscaled input, [in, in]."""
        self._weights = weights
        self._inputs = Equilibrated.of(gram)
        for start in range(0, len(gram), FORM_COLUMNS):
            part = slice(start, start + FORM_COLUMNS)
            self._inputs.matrix[part, part] *= 0.5  # what lies above them counts twice
        self._largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
        size = (sum(map(len, weights)), len(gram))
        self._delta = torch.empty(size, dtype=torch.float16, device=gram.device)
        self._reach = torch.empty_like(self._delta)

    def of(self, scale: Tensor) -> float:
        """scale.rounding_loss of the scale [in]."""
        unit, factor = self._units(scale)
        start = 0
        for weight in self._weights:
            _round(weight, scale, factor, self._delta[start : start + len(weight)])
            start += len(weight)
        for start in range(0, len(scale), FORM_COLUMNS):
            columns = slice(start, start + FORM_COLUMNS)
            left, right = self._delta[:, : columns.stop], self._inputs.matrix[: columns.stop]
            half_product(left, right[:, columns], out=self._reach[:, columns])
        parts = torch.empty(PARTS, device=scale.device)
        _dot[(PARTS,)](
            self._delta,
            self._reach,
            parts,
            self._delta.numel(),
            ELEMENTS=ELEMENTS_AT_ONCE,
            PARTS=PARTS,
        )
        return float(parts.sum() * unit * unit * 2)

    def _units(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """A power of two that no error exceeds as the inputs see it, and what brings it to 1."""
        factor = self._inputs.root / scale
        steps = (self._largest * scale).view(-1, GROUP_SIZE).amax(1) * (2 / MAX_CODE)
        unit = power_above((steps * factor.view(-1, GROUP_SIZE).amax(1)).max() * LARGEST_ERROR)
        return unit, factor / unit


def _round(weight: Tensor, scale: Tensor, factor: Tensor, delta: Tensor) -> None:
    rows, columns = weight.shape
    _rounding_errors[(triton.cdiv(rows, ROWS_AT_ONCE), columns // GROUP_SIZE)](
        weight,
        scale,
        factor,
        delta,
        rows,
        weight.stride(0),
        columns,
        ROWS=ROWS_AT_ONCE,
        GROUP=GROUP_SIZE,
        num_warps=WARPS,
    )


@triton.jit
def _rounding_errors(  # type: ignore[no-untyped-def]
    weight_at,
    scale_at,
    factor_at,
    delta_at,
    rows,
    weight_stride,
    columns,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Errors of the scaled weights on their plain grids, times factor [in]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    tile = (row < rows)[:, None]
    wide = row.to(tl.int64)[:, None]
    weight = tl.load(weight_at + wide * weight_stride + column[None, :], mask=tile, other=0.0)
    weight = weight * tl.load(scale_at + column)[None, :]
    scale, zero = grid_for_range(tl.min(weight, axis=1), tl.max(weight, axis=1))
    delta = rounding_error(weight, scale, zero) * tl.load(factor_at + column)[None, :]
    tl.store(delta_at + wide * columns + column[None, :], delta.to(tl.float16), mask=tile)


@triton.jit
def _dot(  # type: ignore[no-untyped-def]
    a_at,
    b_at,
    parts_at,
    elements,
    ELEMENTS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The sum of products of two arrays, in parts."""
    total = tl.zeros((ELEMENTS,), tl.float32)
    for start in range(tl.program_id(0) * ELEMENTS, elements, PARTS * ELEMENTS):
        at = start + tl.arange(0, ELEMENTS)
        a = tl.load(a_at + at, mask=at < elements, other=0.0).to(tl.float32)
        total += a * tl.load(b_at + at, mask=at < elements, other=0.0).to(tl.float32)
    tl.store(parts_at + tl.program_id(0), tl.sum(total))
