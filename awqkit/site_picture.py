"""What a reader of the report wants to see of a site: its stages, its weights, its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.checkpoint.layout import MAX_CODE
from awqkit.search.affine import GroupGrid, in_groups, min_max_grid, round_to_nearest
from awqkit.search.moments import Moments
from awqkit.search.site import Rows
from awqkit.site_error import SiteError

#: Bins of the histogram, over −1 … 1.
BINS = 41
#: Shares of a site's input channels that are quieter than the values of `SitePicture.channels`.
CHANNEL_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0)


@dataclass(frozen=True, kw_only=True)
class SitePicture:
    """Relative output errors on the judging rows: after scaling, and after choosing ranges, too.

    channels: root mean square of the input channels at CHANNEL_SHARES, over the median's.
    histogram: shares of the scaled weights by bins of w / (largest |w| of its group).
    low, high: mean ends of the chosen ranges in the same unit.  clipped: share of weights beyond.
    """

    error_scaled: float
    error_ranged: float
    channels: tuple[float, ...]
    histogram: tuple[float, ...]
    low: float
    high: float
    clipped: float


@dataclass(frozen=True)
class Sketch:
    """What is seen of linears that read one input; sketches of more linears add up.

    counts: int64 [BINS].  ends: float64 [2], sums over groups.
    """

    scaled: SiteError
    ranged: SiteError
    counts: Tensor
    ends: Tensor
    groups: int
    clipped: int

    @classmethod
    def of(cls, weight: Tensor, grid: GroupGrid, rows: Rows) -> Sketch:
        """weight: float32 [out, in], already scaled, as are the rows' inputs; grid: as stored."""
        plain = round_to_nearest(weight, min_max_grid(weight)).sub_(weight)
        scaled = SiteError.of(plain, weight, rows)
        ranged = round_to_nearest(weight, grid).sub_(weight)
        grouped = in_groups(weight)
        largest = grouped.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny)
        low, high = -grid.zero * grid.scale, (MAX_CODE - grid.zero) * grid.scale
        # Half a step beyond the last level a weight still rounds to it as to any other.
        half = grid.scale / 2
        beyond = (grouped < (low - half).unsqueeze(-1)) | (grouped > (high + half).unsqueeze(-1))
        relative = grouped / largest.unsqueeze(-1)
        ends = torch.stack([(low / largest).clamp(-1, 0).sum(), (high / largest).clamp(0, 1).sum()])
        return cls(
            scaled=scaled,
            ranged=scaled.with_noise(ranged, rows),
            counts=torch.histc(relative, BINS, -1, 1).cpu().long(),
            ends=ends.cpu().double(),
            groups=largest.numel(),
            clipped=int(beyond.sum()),
        )

    def __add__(self, other: Sketch) -> Sketch:
        return Sketch(
            self.scaled + other.scaled,
            self.ranged + other.ranged,
            self.counts + other.counts,
            self.ends + other.ends,
            self.groups + other.groups,
            self.clipped + other.clipped,
        )

    def picture(self, channels: Sequence[float]) -> SitePicture:
        total = max(1, int(self.counts.sum()))
        low, high = (self.ends / max(1, self.groups)).tolist()
        return SitePicture(
            error_scaled=self.scaled.relative,
            error_ranged=self.ranged.relative,
            channels=tuple(channels),
            histogram=tuple(round(count / total, 6) for count in self.counts.tolist()),
            low=round(low, 4),
            high=round(high, 4),
            clipped=self.clipped / total,
        )


def channel_profile(moments: Moments) -> tuple[float, ...]:
    """How loud input channels are at CHANNEL_SHARES, over the median one."""
    loudness = moments.gram.diagonal().float().clamp(min=0).sqrt().cpu()
    median = loudness.median().clamp(min=torch.finfo(torch.float32).tiny)
    shares = torch.tensor(CHANNEL_SHARES)
    return tuple(round(value, 3) for value in (loudness.quantile(shares) / median).tolist())
