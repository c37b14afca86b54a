"""The range of a group whose columns' errors count differently, one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.search.affine import GroupGrid, grid_for_range, levels, nearest_codes, storable
from awqkit.search.products import has_triton

#: Shares of the minimum and of the maximum: those tried first, and the steps tried around the best.
FIRST_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
FINER_STEPS = (0.05, 0.025)
#: Times that the scale is fitted to the codes, and the codes are rounded anew.
FITS = 2


def weighted_range(weight: Tensor, importance: Tensor) -> GroupGrid:
    """The grid [out] with the least sum of importance · (rounded − weight)², from coarse to fine.

    weight: float32 [out, GROUP_SIZE]; importance: float32 [GROUP_SIZE], not negative.
    """
    if weight.is_cuda and has_triton():
        from awqkit.search.weighted_range_kernel import weighted_range as on_gpu

        return on_gpu(
            weight, importance, first_shares=FIRST_SHARES, finer_steps=FINER_STEPS, fits=FITS
        )
    low, high = weight.amin(-1), weight.amax(-1)
    shares = torch.tensor(FIRST_SHARES, device=weight.device).unsqueeze(1)
    best = _Best(weight, importance)
    for keep_low in FIRST_SHARES:
        best.try_shares(low, high, torch.full_like(shares, keep_low), shares)
    for step in FINER_STEPS:
        offsets = torch.tensor((-step, 0.0, step), device=weight.device).unsqueeze(1)
        middle_low, middle_high = best.low_share, best.high_share
        for offset in offsets:
            best.try_shares(low, high, middle_low + offset, middle_high + offsets)
    for _ in range(FITS):
        best.fit_scale()
    return GroupGrid(best.scale, best.zero)


class _Best:
    """The best grid so far of every row; all tensors [out]."""

    def __init__(self, weight: Tensor, importance: Tensor) -> None:
        self._weight, self._importance = weight, importance
        rows = weight.shape[0]
        self._least = torch.full((rows,), torch.inf, device=weight.device)
        self.scale, self.zero = torch.ones_like(self._least), torch.zeros_like(self._least)
        self.low_share, self.high_share = self.scale.clone(), self.scale.clone()

    def try_shares(self, low: Tensor, high: Tensor, low_share: Tensor, high_share: Tensor) -> None:
        """Keep the best of candidates [n, out] or [n, 1]."""
        high_share = high_share.expand(-1, len(low))
        low_share = low_share.expand_as(high_share)
        grid = grid_for_range(low * low_share, high * high_share)
        error, index = self._error(grid).min(0)
        better, index = error < self._least, index.unsqueeze(0)
        self._least = torch.where(better, error, self._least)
        self.scale = torch.where(better, grid.scale.gather(0, index)[0], self.scale)
        self.zero = torch.where(better, grid.zero.gather(0, index)[0], self.zero)
        self.low_share = torch.where(better, low_share.gather(0, index)[0], self.low_share)
        self.high_share = torch.where(better, high_share.gather(0, index)[0], self.high_share)

    def fit_scale(self) -> None:
        """The scale of weighted least squares for the codes of the best grid."""
        codes = nearest_codes(self._weight, GroupGrid(self.scale, self.zero))
        steps = codes - self.zero.unsqueeze(-1)
        along = (steps * self._weight) @ self._importance
        energy = steps.square() @ self._importance
        fitted = storable(torch.where((energy > 0) & (along > 0), along / energy, self.scale))
        error = self._error(GroupGrid(fitted, self.zero))
        better = error < self._least
        self._least = torch.where(better, error, self._least)
        self.scale = torch.where(better, fitted, self.scale)

    def _error(self, grid: GroupGrid) -> Tensor:
        delta = levels(nearest_codes(self._weight, grid), grid).sub_(self._weight)
        return delta.square_() @ self._importance
