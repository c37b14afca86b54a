"""Second-order rounding of one block of columns on a GPU: every row on its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from awqkit.checkpoint.layout import MAX_CODE
from awqkit.search.affine import GroupGrid

#: Rows of a weight that one program rounds, and its warps.
ROWS_AT_ONCE, WARPS = 8, 4
#: Adding and subtracting it rounds a float32 below 2²² to the nearest integer, ties to even.
_ROUNDER = tl.constexpr(12582912.0)


def round_columns(
    value: Tensor, target: Tensor, grid: GroupGrid, feedback: Tensor
) -> tuple[Tensor, Tensor]:
    """The same as rounding.round_columns, whose arguments are described there."""
    rows, columns = value.shape
    codes = torch.empty_like(value, memory_format=torch.contiguous_format)
    error = torch.empty_like(codes)
    _round_columns[(triton.cdiv(rows, ROWS_AT_ONCE),)](
        value,
        target,
        grid.scale.contiguous(),
        grid.zero.contiguous(),
        feedback.contiguous(),
        codes,
        error,
        rows,
        value.stride(0),
        target.stride(0),
        ROWS=ROWS_AT_ONCE,
        COLUMNS=columns,
        LAST=float(MAX_CODE),
        num_warps=WARPS,
    )
    return codes, error


@triton.jit
def _round_columns(  # type: ignore[no-untyped-def]
    value_at,
    target_at,
    scale_at,
    zero_at,
    feedback_at,
    codes_at,
    error_at,
    rows,
    value_stride,
    target_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LAST: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < rows
    tile = inside[:, None]
    row = row.to(tl.int64)
    wide = row[:, None]
    value = tl.load(value_at + wide * value_stride + column[None, :], mask=tile, other=0.0)
    # Turns from target into error, column by column.
    error = tl.load(target_at + wide * target_stride + column[None, :], mask=tile, other=0.0)
    scale = tl.load(scale_at + row, mask=inside, other=1.0)
    zero = tl.load(zero_at + row, mask=inside, other=0.0)
    codes = tl.zeros((ROWS, COLUMNS), tl.float32)
    for done in range(COLUMNS):
        this = COLUMNS - 1 - done
        here = (column == this)[None, :]
        code = tl.div_rn(tl.sum(tl.where(here, value, 0.0), axis=1), scale) + zero
        code = tl.minimum(tl.maximum(code, 0.0), LAST)
        code = (code + _ROUNDER) - _ROUNDER
        left = tl.sum(tl.where(here, error, 0.0), axis=1) - (code - zero) * scale
        codes = tl.where(here, code[:, None], codes)
        error = tl.where(here, left[:, None], error)
        share = tl.load(feedback_at + this * COLUMNS + column)
        value += left[:, None] * tl.where(column < this, share, 0.0)[None, :]
    tl.store(codes_at + wide * COLUMNS + column[None, :], codes, mask=tile)
    tl.store(error_at + wide * COLUMNS + column[None, :], error, mask=tile)
