"""Coordinate descent over one group's codes on a GPU: every row on its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from awqkit.checkpoint.layout import MAX_CODE

#: Rows of a weight that one program moves, and its warps.
ROWS_AT_ONCE, WARPS = 8, 4
#: Adding and subtracting it rounds a float32 below 2²² to the nearest integer, ties to even.
_ROUNDER = tl.constexpr(12582912.0)


def move_codes(codes: Tensor, slope: Tensor, scale: Tensor, own: Tensor) -> Tensor:
    """The same as refinement.move_codes, whose arguments are described there."""
    rows, columns = codes.shape
    moved = torch.empty_like(codes, memory_format=torch.contiguous_format)
    _move_codes[(triton.cdiv(rows, ROWS_AT_ONCE),)](
        codes,
        slope,
        scale.contiguous(),
        own,
        moved,
        rows,
        codes.stride(0),
        slope.stride(0),
        ROWS=ROWS_AT_ONCE,
        COLUMNS=columns,
        LAST=float(MAX_CODE),
        num_warps=WARPS,
    )
    return moved


@triton.jit
def _move_codes(  # type: ignore[no-untyped-def]
    codes_at,
    slope_at,
    scale_at,
    own_at,
    moved_at,
    rows,
    codes_stride,
    slope_stride,
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
    codes = tl.load(codes_at + wide * codes_stride + column[None, :], mask=tile, other=0.0)
    slope = tl.load(slope_at + wide * slope_stride + column[None, :], mask=tile, other=0.0)
    scale = tl.load(scale_at + row, mask=inside, other=1.0)
    for this in range(COLUMNS):
        share = tl.load(own_at + this * COLUMNS + column)
        curvature = tl.load(own_at + this * COLUMNS + this)
        here = (column == this)[None, :]
        code = tl.sum(tl.where(here, codes, 0.0), axis=1)
        wanted = code - tl.div_rn(tl.sum(tl.where(here, slope, 0.0), axis=1), curvature * scale)
        wanted = tl.minimum(tl.maximum(wanted, 0.0), LAST)
        wanted = (wanted + _ROUNDER) - _ROUNDER
        slope += ((wanted - code) * scale)[:, None] * share[None, :]
        codes = tl.where(here, wanted[:, None], codes)
    tl.store(moved_at + wide * COLUMNS + column[None, :], codes, mask=tile)
