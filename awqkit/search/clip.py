"""Search for the range that each group's grid spans, its two ends moved independently."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.search.affine import GroupGrid, grid_for_range, in_groups, levels, nearest_codes

#: Shares of a group's minimum and maximum that the range may keep.
SHARES = tuple(1.0 - 0.05 * step for step in range(9))
#: Elements that one step of the search may touch, so that its memory stays bounded.
STEP_ELEMENTS = 1 << 24


def search_clip(weight: Tensor, blocks: Tensor) -> GroupGrid:
    """The grid of each group with the least output error under rounding to nearest.

    weight: float32 [out, in], scaled.  blocks: the input's second moments within each group,
    [groups, GROUP_SIZE, GROUP_SIZE], of the inputs divided by the same scale.
    """
    grouped = in_groups(weight)
    rows = max(1, STEP_ELEMENTS // weight.shape[1])
    grids = [_search_rows(part, blocks) for part in grouped.split(rows)]
    return GroupGrid(
        torch.cat([grid.scale for grid in grids]), torch.cat([grid.zero for grid in grids])
    )


def _search_rows(grouped: Tensor, blocks: Tensor) -> GroupGrid:
    low, high = grouped.amin(-1).clamp(max=0.0), grouped.amax(-1).clamp(min=0.0)
    best = grid_for_range(low, high)
    scale, zero = best.scale.clone(), best.zero.clone()
    least = _group_errors(grouped, best, blocks)
    for keep_low in SHARES:
        for keep_high in SHARES:
            grid = grid_for_range(low * keep_low, high * keep_high)
            error = _group_errors(grouped, grid, blocks)
            better = error < least
            least = torch.where(better, error, least)
            scale = torch.where(better, grid.scale, scale)
            zero = torch.where(better, grid.zero, zero)
    return GroupGrid(scale, zero)


def _group_errors(grouped: Tensor, grid: GroupGrid, blocks: Tensor) -> Tensor:
    """Δ · E[x xᵀ] · Δᵀ within each group: [out, groups]."""
    delta = levels(nearest_codes(grouped, grid), grid) - grouped
    return (torch.einsum("ogi,gij->ogj", delta, blocks) * delta).sum(-1)
