"""One site from float weights to integers; every stage stays only where held-out rows agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.search.affine import (
    GroupGrid,
    in_groups,
    levels,
    min_max_grid,
    nearest_codes,
    round_to_nearest,
)
from awqkit.search.clip import search_clip
from awqkit.search.moments import Moments, divided_by, output_error
from awqkit.search.rounding import round_second_order
from awqkit.search.scale import ScaleChoice, rank_scales

#: Of the ranked scales, those that are tried with clipping, which costs far more than ranking.
SHORTLIST = 1


@dataclass(frozen=True)
class Rows:
    """Moments of the rows that the search sees, and of those that only judge it."""

    search: Moments
    judge: Moments


@dataclass(frozen=True)
class RoundedLinear:
    """codes: float32 [out, in] with whole numbers; kept: the stages that were kept."""

    codes: Tensor
    grid: GroupGrid
    kept: tuple[str, ...]

    def weight(self) -> Tensor:
        """[out, in], float32."""
        return levels(in_groups(self.codes), self.grid).flatten(-2)

    def split(self, rows: Sequence[int]) -> list[RoundedLinear]:
        """The linears of so many rows each that were rounded as one."""
        parts = zip(
            self.codes.split(rows),
            self.grid.scale.split(rows),
            self.grid.zero.split(rows),
            strict=True,
        )
        return [
            RoundedLinear(codes, GroupGrid(scale, zero), self.kept) for codes, scale, zero in parts
        ]


def choose_scale(
    weights: Sequence[Tensor],
    rows: Rows,
    *,
    tie: Callable[[Tensor], Tensor],
    realise: Callable[[Tensor], Tensor],
) -> ScaleChoice:
    """The scale that serves best once ranges are clipped, or the identity.

    Clipping takes over part of what a scale does, so the candidates that promise most are compared
    behind it. The identity stays unless the judging rows prefer the other, too.
    """
    ranked = rank_scales(weights, rows.search, tie=tie, realise=realise)
    identity = next(choice for choice in ranked if choice.is_identity)
    tried = [identity, *(choice for choice in ranked[:SHORTLIST] if choice is not identity)]
    errors = [_clipped_errors(weights, rows, choice.scale) for choice in tried]
    best = min(range(len(tried)), key=lambda index: errors[index].search)
    return tried[best] if errors[best].judge < errors[0].judge else identity


@dataclass(frozen=True)
class _Errors:
    search: float
    judge: float


def _clipped_errors(weights: Sequence[Tensor], rows: Rows, scale: Tensor) -> _Errors:
    """Output errors of rounding W·scale to nearest on clipped ranges, summed over the linears."""
    search = divided_by(rows.search, scale).gram
    scaled = torch.cat([weight * scale for weight in weights])
    delta = round_to_nearest(scaled, search_clip(scaled, search)).sub_(scaled)
    search_error = float(output_error(delta, search))
    del search  # of a wide input, as large as the weights: not held beside the next
    judge = divided_by(rows.judge, scale).gram
    return _Errors(search=search_error, judge=float(output_error(delta, judge)))


def round_linear(weight: Tensor, rows: Rows, *, second_order: bool) -> RoundedLinear:
    """Clip, then round; weight: float32 [out, in], already scaled, like the rows' inputs."""
    plain = min_max_grid(weight)
    clipped = search_clip(weight, rows.search.gram)
    plain_error = _judge(round_to_nearest(weight, plain), weight, rows)
    clipped_error = _judge(round_to_nearest(weight, clipped), weight, rows)
    keep_clip = clipped_error < plain_error
    grid, error = (clipped, clipped_error) if keep_clip else (plain, plain_error)
    kept = ("clip",) if keep_clip else ()
    nearest = RoundedLinear(nearest_codes(in_groups(weight), grid).flatten(-2), grid, kept)
    if not second_order:
        return nearest
    codes = round_second_order(weight, grid, rows.search.gram)
    rounded = RoundedLinear(codes, grid, (*kept, "second-order"))
    return rounded if _judge(rounded.weight(), weight, rows) < error else nearest


def _judge(rounded: Tensor, weight: Tensor, rows: Rows) -> float:
    """Output error on the judging rows; consumes rounded."""
    return float(output_error(rounded.sub_(weight), rows.judge.gram))
