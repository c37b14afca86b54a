"""The search for clipped ranges on a GPU: some groups in turn, all candidates of each in one pass.

Errors are kept as the inputs see them, in units that 16 bits hold: see equilibrium.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit.search.column_blocks import column_blocks
from awqkit.search.equilibrium import Equilibrated, power_above
from awqkit.search.grid_kernel import grid_for_range, rounding_error
from awqkit.search.products import half_product
from awqkit.search.ranges import LEAST_SHARE, MOST_SHARE, Ranges

#: Rows of a weight that one program searches and its warps; and of a weight of fewer rows than
#: FEW_ROWS, so that there are programs enough.
ROWS_AT_ONCE, WARPS = 64, 8
FEW_ROWS, FEW_AT_ONCE, FEW_WARPS = 5120, 32, 8
#: By how much the rows of quiet weights are made louder, at most, to fill the range of 16 bits.
MOST_LOUDER = 2.0**40


def choose_ranges(
    weight: Tensor, gram: Tensor, ranges: Ranges, sweeps: Sequence[tuple[int, float]]
) -> None:
    """All sweeps of clip.search_clip over a weight, by products of 16 bits; in place.

    ranges: those to begin with, whose `error` is not kept up.
    """
    inputs = Equilibrated.of(gram)
    largest = weight.abs().mul_(inputs.root).amax(1)
    factor = inputs.root / power_above(largest.max())
    louder = power_above(largest.max()) / power_above(largest)
    louder = louder.where(largest > 0, 1.0).clamp_(max=MOST_LOUDER)
    error = (ranges.error * factor).mul_(louder.unsqueeze(1)).half()
    rows, columns = weight.shape
    blocks = list(column_blocks(columns))
    width = blocks[0].stop
    pull = torch.empty(rows, width, device=weight.device)
    change = torch.empty(rows, width, dtype=torch.float16, device=weight.device)
    are_few = rows < FEW_ROWS
    at_once = FEW_AT_ONCE if are_few else ROWS_AT_ONCE
    for count, step in sweeps:
        for block in blocks:
            size = block.stop - block.start
            half_product(error, inputs.matrix[:, block], out=pull[:, :size])
            _choose_ranges[(triton.cdiv(rows, at_once),)](
                weight,
                factor,
                louder,
                error,
                pull,
                change,
                inputs.matrix,
                ranges.low,
                ranges.high,
                ranges.low_share,
                ranges.high_share,
                ranges.scale,
                ranges.zero,
                rows,
                columns,
                weight.stride(0),
                width,
                block.start // GROUP_SIZE,
                size // GROUP_SIZE,
                count,
                step,
                ROWS=at_once,
                GROUP=GROUP_SIZE,
                LEAST_SHARE=LEAST_SHARE,
                MOST_SHARE=MOST_SHARE,
                num_warps=FEW_WARPS if are_few else WARPS,
                num_stages=2,
            )


@triton.jit(do_not_specialize=["rows", "first", "groups", "count"])
def _choose_ranges(  # type: ignore[no-untyped-def]
    weight_at,
    factor_at,
    louder_at,
    error_at,
    pull_at,
    change_at,
    matrix_at,
    low_at,
    high_at,
    low_share_at,
    high_share_at,
    scale_at,
    zero_at,
    rows,
    columns,
    weight_stride,
    width,
    first,
    groups,
    count,
    step,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    LEAST_SHARE: tl.constexpr,
    MOST_SHARE: tl.constexpr,
):
    """So many groups from the first one on, each in sight of what those before have become."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, GROUP)
    inside = row < rows
    tile = inside[:, None]
    wide = row.to(tl.int64)[:, None]
    louder = tl.load(louder_at + row, mask=inside, other=1.0)
    for index in range(groups):
        group = first + index
        here = group * GROUP + column
        beside = wide * width + index * GROUP + column[None, :]
        at = wide * columns + here[None, :]
        weight = tl.load(weight_at + wide * weight_stride + here[None, :], mask=tile, other=0.0)
        weight *= louder[:, None]
        factor = tl.load(factor_at + here)[None, :]
        pull = tl.load(pull_at + beside, mask=tile, other=0.0)
        for earlier in range(index):
            change_there = change_at + wide * width + earlier * GROUP + column[None, :]
            theirs = ((first + earlier) * GROUP + column).to(tl.int64)[:, None] * columns
            change = tl.load(change_there, mask=tile, other=0.0)
            pull = tl.dot(change, tl.load(matrix_at + theirs + here[None, :]), acc=pull)
        own = tl.load(matrix_at + here.to(tl.int64)[:, None] * columns + here[None, :])
        before = tl.load(error_at + at, mask=tile, other=0.0)
        others = 2.0 * (pull - tl.dot(before, own))

        vector = group.to(tl.int64) * rows + row
        low = tl.load(low_at + vector, mask=inside, other=0.0)
        high = tl.load(high_at + vector, mask=inside, other=0.0)
        first_low_share = tl.load(low_share_at + vector, mask=inside, other=1.0)
        first_high_share = tl.load(high_share_at + vector, mask=inside, other=1.0)
        least = tl.full((ROWS,), float("inf"), tl.float32)
        best_low_share, best_high_share = first_low_share, first_high_share
        best_scale = tl.full((ROWS,), 1.0, tl.float32)
        best_zero = tl.zeros((ROWS,), tl.float32)
        for low_try in range(count):
            low_share = first_low_share + (low_try - (count - 1) / 2) * step
            low_share = tl.minimum(tl.maximum(low_share, LEAST_SHARE), MOST_SHARE)
            for high_try in range(count):
                high_share = first_high_share + (high_try - (count - 1) / 2) * step
                high_share = tl.minimum(tl.maximum(high_share, LEAST_SHARE), MOST_SHARE)
                scale, zero = grid_for_range(low * low_share, high * high_share)
                delta = rounding_error(weight, scale * louder, zero) * factor
                added = (tl.dot(delta.to(tl.float16), own) + others) * delta
                added = tl.sum(added, axis=1)
                better = added < least
                least = tl.where(better, added, least)
                best_low_share = tl.where(better, low_share, best_low_share)
                best_high_share = tl.where(better, high_share, best_high_share)
                best_scale = tl.where(better, scale, best_scale)
                best_zero = tl.where(better, zero, best_zero)

        after = (rounding_error(weight, best_scale * louder, best_zero) * factor).to(tl.float16)
        before = tl.load(error_at + at, mask=tile, other=0.0)  # again, instead of keeping it
        tl.store(change_at + beside, after - before, mask=tile)
        tl.store(error_at + at, after, mask=tile)
        tl.store(low_share_at + vector, best_low_share, mask=inside)
        tl.store(high_share_at + vector, best_high_share, mask=inside)
        tl.store(scale_at + vector, best_scale, mask=inside)
        tl.store(zero_at + vector, best_zero, mask=inside)
        tl.debug_barrier()  # what was written is read by other threads of this program
