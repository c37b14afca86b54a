"""One step of the search for clipped ranges on a GPU: all candidates of a group in one pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit.search.grid_kernel import grid_for_range, rounding_error
from awqkit.search.ranges import LEAST_SHARE, MOST_SHARE, Ranges

#: Rows of a weight that one program searches, and its warps.
ROWS_AT_ONCE, WARPS = 64, 8


def choose_range(
    weight: Tensor,
    ranges: Ranges,
    group: int,
    own: Tensor,
    pull: Tensor,
    *,
    count: int,
    step: float,
) -> None:
    """The same as clip.choose_range, whose arguments are described there.

    Products take TF32 factors; the chosen scales and zero points are exact.
    """
    error = ranges.error[:, group * GROUP_SIZE : (group + 1) * GROUP_SIZE]
    rows = weight.shape[0]
    _choose_range[(triton.cdiv(rows, ROWS_AT_ONCE),)](
        weight,
        error,
        pull,
        own,
        ranges.low[group],
        ranges.high[group],
        ranges.low_share[group],
        ranges.high_share[group],
        ranges.scale[group],
        ranges.zero[group],
        rows,
        weight.stride(0),
        error.stride(0),
        pull.stride(0),
        own.stride(0),
        step,
        COUNT=count,
        ROWS=ROWS_AT_ONCE,
        COLUMNS=GROUP_SIZE,
        LEAST_SHARE=LEAST_SHARE,
        MOST_SHARE=MOST_SHARE,
        num_warps=WARPS,
    )


@triton.jit
def _choose_range(  # type: ignore[no-untyped-def]
    weight_at,
    error_at,
    pull_at,
    own_at,
    low_at,
    high_at,
    low_share_at,
    high_share_at,
    scale_at,
    zero_at,
    rows,
    weight_stride,
    error_stride,
    pull_stride,
    own_stride,
    step,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LEAST_SHARE: tl.constexpr,
    MOST_SHARE: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = row < rows
    tile = inside[:, None]
    wide = row.to(tl.int64)[:, None]
    weight = tl.load(weight_at + wide * weight_stride + column, mask=tile, other=0.0)
    error = tl.load(error_at + wide * error_stride + column, mask=tile, other=0.0)
    pull = tl.load(pull_at + wide * pull_stride + column, mask=tile, other=0.0)
    own = tl.load(own_at + tl.arange(0, COLUMNS)[:, None] * own_stride + column)
    low = tl.load(low_at + row, mask=inside, other=0.0)
    high = tl.load(high_at + row, mask=inside, other=0.0)
    first_low_share = tl.load(low_share_at + row, mask=inside, other=1.0)
    first_high_share = tl.load(high_share_at + row, mask=inside, other=1.0)
    others = 2.0 * (pull - tl.dot(error, own, input_precision="tf32"))

    least = tl.full((ROWS,), float("inf"), tl.float32)
    best_low_share, best_high_share = first_low_share, first_high_share
    best_scale = tl.full((ROWS,), 1.0, tl.float32)
    best_zero = tl.zeros((ROWS,), tl.float32)
    for candidate in range(COUNT * COUNT):
        low_share = first_low_share + (candidate // COUNT - (COUNT - 1) / 2) * step
        low_share = tl.minimum(tl.maximum(low_share, LEAST_SHARE), MOST_SHARE)
        high_share = first_high_share + (candidate % COUNT - (COUNT - 1) / 2) * step
        high_share = tl.minimum(tl.maximum(high_share, LEAST_SHARE), MOST_SHARE)
        scale, zero = grid_for_range(low * low_share, high * high_share)
        delta = rounding_error(weight, scale, zero)
        added = (tl.dot(delta, own, input_precision="tf32") + others) * delta
        added = tl.sum(added, axis=1)
        better = added < least
        least = tl.where(better, added, least)
        best_low_share = tl.where(better, low_share, best_low_share)
        best_high_share = tl.where(better, high_share, best_high_share)
        best_scale = tl.where(better, scale, best_scale)
        best_zero = tl.where(better, zero, best_zero)

    error = rounding_error(weight, best_scale, best_zero)
    tl.store(error_at + wide * error_stride + column, error, mask=tile)
    tl.store(low_share_at + row, best_low_share, mask=inside)
    tl.store(high_share_at + row, best_high_share, mask=inside)
    tl.store(scale_at + row, best_scale, mask=inside)
    tl.store(zero_at + row, best_zero, mask=inside)
