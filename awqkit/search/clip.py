"""Search for the range that each group's grid spans, its two ends moved independently."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit.search.affine import GroupGrid, grid_for_range, in_groups, levels, nearest_codes

#: Shares of a group's minimum and maximum that the range may keep.
SHARES = tuple(1.0 - 0.05 * step for step in range(9))
#: Times that every group is looked at; the later ones see what the others have become.
SWEEPS = 2
#: Elements of a weight that are searched at once, so that memory stays bounded.
STEP_ELEMENTS = 1 << 22


def search_clip(weight: Tensor, gram: Tensor) -> GroupGrid:
    """The grids with the least output error under rounding to nearest, tr(Δ · E[x xᵀ] · Δᵀ).

    weight: float32 [out, in], scaled.  gram: E[x xᵀ] of the inputs divided by the same scale,
    [in, in].  Coordinate descent, a group at a time: inputs of different groups are correlated, so
    a group's best range depends on the errors that the others make. Never worse than min and max.
    """
    rows = max(1, STEP_ELEMENTS // weight.shape[1])
    grids = [_search_rows(in_groups(part), gram) for part in weight.split(rows)]
    return GroupGrid(
        torch.cat([grid.scale for grid in grids]), torch.cat([grid.zero for grid in grids])
    )


def _search_rows(grouped: Tensor, gram: Tensor) -> GroupGrid:
    """grouped: [out, groups, GROUP_SIZE]."""
    low, high = grouped.amin(-1), grouped.amax(-1)
    grid = grid_for_range(low, high)
    error = levels(nearest_codes(grouped, grid), grid) - grouped
    for _ in range(SWEEPS):
        for group in range(grouped.shape[1]):
            columns = gram[:, group * GROUP_SIZE : (group + 1) * GROUP_SIZE]
            own = columns[group * GROUP_SIZE : (group + 1) * GROUP_SIZE]
            others = error.flatten(-2) @ columns - error[:, group] @ own
            best = _best_range(grouped[:, group], low[:, group], high[:, group], own, others)
            grid.scale[:, group], grid.zero[:, group] = best.scale, best.zero
            error[:, group] = levels(nearest_codes(grouped[:, group], best), best)
            error[:, group] -= grouped[:, group]
    return grid


def _best_range(
    weight: Tensor, low: Tensor, high: Tensor, own: Tensor, others: Tensor
) -> GroupGrid:
    """The grid [out] of one group that adds the least to the output error.

    weight: [out, GROUP_SIZE].  low, high: [out].  own: the group's block of the Gram matrix.
    others: what the errors of all other groups put on this group's inputs, [out, GROUP_SIZE].
    """
    shares = torch.tensor(SHARES, device=weight.device).unsqueeze(1)
    best = grid_for_range(low, high)
    scale, zero = best.scale, best.zero
    least = torch.full_like(low, torch.inf)
    for keep_low in SHARES:
        grid = grid_for_range((low * keep_low).expand(len(SHARES), -1), high * shares)
        delta = levels(nearest_codes(weight, grid), grid) - weight
        added = ((delta @ own + 2 * others) * delta).sum(-1)
        error, index = added.min(0)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, grid.scale.gather(0, index.unsqueeze(0))[0], scale)
        zero = torch.where(better, grid.zero.gather(0, index.unsqueeze(0))[0], zero)
    return GroupGrid(scale, zero)
