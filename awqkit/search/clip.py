"""Search for the range that each group's grid spans, its two ends moved independently."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit.search.affine import GroupGrid, grid_for_range, levels, nearest_codes
from awqkit.search.products import has_triton, product
from awqkit.search.ranges import LEAST_SHARE, MOST_SHARE, Ranges

#: Every group is looked at once a sweep, and tries count² ranges: so many shares of its minimum and
#: of its maximum, step apart, around those it has. From coarse to fine, since the later sweeps see
#: what the other groups have become.
SWEEPS = ((4, 0.12), (3, 0.06), (3, 0.04), (3, 0.03), (3, 0.02), (3, 0.015))
#: The middle of the first sweep's shares, 0.64 to 1.
FIRST_SHARE = 0.82
#: Elements of a weight that are searched at once on a CPU, so that the candidates stay in cache.
STEP_ELEMENTS = 1 << 19


def search_clip(weight: Tensor, gram: Tensor) -> GroupGrid:
    """The grids with the least output error under rounding to nearest, tr(Δ · E[x xᵀ] · Δᵀ).

    weight: float32 [out, in], scaled.  gram: E[x xᵀ] of the inputs divided by the same scale,
    [in, in].  Coordinate descent, a group at a time: inputs of different groups are correlated, so
    a group's best range depends on the errors that the others make.
    """
    rows = len(weight) if weight.is_cuda else max(1, STEP_ELEMENTS // weight.shape[1])
    parts = [_search_rows(part, gram) for part in weight.split(rows)]
    return GroupGrid(
        torch.cat([part.scale for part in parts], dim=1).T.contiguous(),
        torch.cat([part.zero for part in parts], dim=1).T.contiguous(),
    )


def _search_rows(weight: Tensor, gram: Tensor) -> Ranges:
    ranges = Ranges.full(weight, share=FIRST_SHARE)
    if weight.is_cuda and has_triton():
        from awqkit.search.clip_kernel import choose_ranges

        choose_ranges(weight, gram, ranges, SWEEPS)
        return ranges
    for count, step in SWEEPS:
        for group in range(len(ranges.low)):
            part = slice(group * GROUP_SIZE, (group + 1) * GROUP_SIZE)
            columns = gram[:, part]
            pull = product(ranges.error, columns)
            choose_range(
                weight[:, part], ranges, group, columns[part], pull, count=count, step=step
            )
    return ranges


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
    """Give one group, in every row, the range that adds the least output error; in place.

    weight: the group's weights [out, GROUP_SIZE].  own: its block of the Gram matrix.  pull: what
    the errors of all groups put on its inputs, [out, GROUP_SIZE].
    """
    error = ranges.error[:, group * GROUP_SIZE : (group + 1) * GROUP_SIZE]
    others = 2 * (pull - error @ own)
    offsets = (torch.arange(count, device=weight.device) - (count - 1) / 2) * step
    low_share = _tried(ranges.low_share[group], offsets.repeat_interleave(count))
    high_share = _tried(ranges.high_share[group], offsets.repeat(count))
    grid = grid_for_range(ranges.low[group] * low_share, ranges.high[group] * high_share)
    delta = levels(nearest_codes(weight, grid), grid).sub_(weight)
    best = (delta @ own).add_(others).mul_(delta).sum(-1).argmin(0, keepdim=True)
    for kept, candidates in (
        (ranges.low_share, low_share),
        (ranges.high_share, high_share),
        (ranges.scale, grid.scale),
        (ranges.zero, grid.zero),
    ):
        kept[group] = candidates.gather(0, best)[0]
    error.copy_(delta.gather(0, best.unsqueeze(-1).expand(1, *weight.shape))[0])


def _tried(share: Tensor, offsets: Tensor) -> Tensor:
    """[out] and [candidates] → [candidates, out]."""
    return (share + offsets.unsqueeze(1)).clamp(LEAST_SHARE, MOST_SHARE)
