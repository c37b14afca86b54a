"""The search for a group's range by weighted errors, on a GPU: all candidates in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit.search.affine import GroupGrid
from awqkit.search.grid_kernel import grid_for_range, nearest_codes, rounding_error, storable

#: Rows of a weight that one program searches, and its warps.
ROWS_AT_ONCE, WARPS = 16, 4


def weighted_range(
    weight: Tensor,
    importance: Tensor,
    *,
    first_shares: tuple[float, ...],
    finer_steps: tuple[float, float],
    fits: int,
) -> GroupGrid:
    """The same as weighted_range.weighted_range; first_shares are evenly spaced, downwards."""
    rows = weight.shape[0]
    scale, zero = (torch.empty(rows, device=weight.device) for _ in range(2))
    _weighted_range[(triton.cdiv(rows, ROWS_AT_ONCE),)](
        weight,
        importance.contiguous(),
        scale,
        zero,
        rows,
        weight.stride(0),
        first_shares[0],
        first_shares[0] - first_shares[1],
        finer_steps[0],
        finer_steps[1],
        COUNT=len(first_shares),
        FITS=fits,
        ROWS=ROWS_AT_ONCE,
        COLUMNS=GROUP_SIZE,
        num_warps=WARPS,
    )
    return GroupGrid(scale, zero)


@triton.jit
def _weighted_range(  # type: ignore[no-untyped-def]
    weight_at,
    importance_at,
    scale_at,
    zero_at,
    rows,
    weight_stride,
    first_share,
    first_step,
    second_step,
    third_step,
    COUNT: tl.constexpr,
    FITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < rows
    at = row.to(tl.int64)[:, None] * weight_stride + column[None, :]
    weight = tl.load(weight_at + at, mask=inside[:, None], other=0.0)
    importance = tl.load(importance_at + column)[None, :]
    low, high = tl.min(weight, axis=1), tl.max(weight, axis=1)

    middle = tl.full((ROWS,), first_share, tl.float32) - (COUNT - 1) / 2 * first_step
    scale, zero, low_share, high_share, least = _best_of(
        weight, importance, low, high, middle, middle, first_step, COUNT
    )
    scale, zero, low_share, high_share, least = _best_near(
        weight, importance, low, high, scale, zero, low_share, high_share, least, second_step
    )
    scale, zero, low_share, high_share, least = _best_near(
        weight, importance, low, high, scale, zero, low_share, high_share, least, third_step
    )
    for _ in range(FITS):
        steps = nearest_codes(weight, scale, zero) - zero[:, None]
        along = tl.sum(steps * weight * importance, axis=1)
        energy = tl.sum(steps * steps * importance, axis=1)
        sound = (along > 0) & (energy > 0)
        fitted = tl.where(sound, tl.div_rn(along, tl.where(sound, energy, 1.0)), scale)
        fitted = storable(fitted)
        error = _error(weight, importance, fitted, zero)
        scale = tl.where(error < least, fitted, scale)
        least = tl.minimum(error, least)
    tl.store(scale_at + row, scale, mask=inside)
    tl.store(zero_at + row, zero, mask=inside)


@triton.jit
def _best_of(  # type: ignore[no-untyped-def]
    weight, importance, low, high, middle_low, middle_high, step, COUNT: tl.constexpr
):
    """Of COUNT² ranges, step apart around the middle shares [rows]: grid, shares and error."""
    least = tl.full(low.shape, float("inf"), tl.float32)
    low_share, high_share = middle_low, middle_high
    scale, zero = tl.full(low.shape, 1.0, tl.float32), tl.zeros(low.shape, tl.float32)
    for candidate in range(COUNT * COUNT):
        share = middle_low + ((COUNT - 1) / 2 - candidate // COUNT) * step
        other = middle_high + ((COUNT - 1) / 2 - candidate % COUNT) * step
        tried_scale, tried_zero = grid_for_range(low * share, high * other)
        error = _error(weight, importance, tried_scale, tried_zero)
        better = error < least
        least = tl.where(better, error, least)
        scale, zero = tl.where(better, tried_scale, scale), tl.where(better, tried_zero, zero)
        low_share, high_share = (
            tl.where(better, share, low_share),
            tl.where(better, other, high_share),
        )
    return scale, zero, low_share, high_share, least


@triton.jit
def _best_near(  # type: ignore[no-untyped-def]
    weight, importance, low, high, scale, zero, low_share, high_share, least, step
):
    """The same, where three by three ranges around the best so far are better than it."""
    near_scale, near_zero, near_low, near_high, error = _best_of(
        weight, importance, low, high, low_share, high_share, step, 3
    )
    better = error < least
    return (
        tl.where(better, near_scale, scale),
        tl.where(better, near_zero, zero),
        tl.where(better, near_low, low_share),
        tl.where(better, near_high, high_share),
        tl.minimum(error, least),
    )


@triton.jit
def _error(weight, importance, scale, zero):  # type: ignore[no-untyped-def]
    """Weighted squares of the rounding errors, [rows]."""
    delta = rounding_error(weight, scale, zero)
    return tl.sum(delta * delta * importance, axis=1)
