"""What the search for clipped ranges works on: every group's ends, and the shares kept of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.search.affine import grid_for_range, in_groups, levels, nearest_codes

#: No range keeps less of a group's minimum or maximum, or goes further beyond it.
LEAST_SHARE, MOST_SHARE = 0.4, 1.1


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """low, high: each group's minimum and maximum; the shares: what the range keeps of them.

    error: the rounded weight minus the weight.  low, high, low_share, high_share, scale and zero
    are [groups, out], error is [out, in], all float32; a search changes them in place.
    """

    low: Tensor
    high: Tensor
    low_share: Tensor
    high_share: Tensor
    scale: Tensor
    zero: Tensor
    error: Tensor

    @classmethod
    def full(cls, weight: Tensor, *, share: float) -> Ranges:
        """The plain grids of weight [out, in], float32; a search is to start around `share`."""
        grouped = in_groups(weight)
        low, high = grouped.amin(-1), grouped.amax(-1)
        grid = grid_for_range(low, high)
        shares = torch.full(low.T.shape, share, device=weight.device)
        return cls(
            low=low.T.contiguous(),
            high=high.T.contiguous(),
            low_share=shares,
            high_share=shares.clone(),
            scale=grid.scale.T.contiguous(),
            zero=grid.zero.T.contiguous(),
            error=levels(nearest_codes(grouped, grid), grid).sub_(grouped).flatten(-2),
        )
