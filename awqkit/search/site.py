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
from awqkit.search.joint_descent import descend_jointly
from awqkit.search.moments import Moments, divided_by, output_error
from awqkit.search.refinement import refine
from awqkit.search.rounding import round_second_order
from awqkit.search.scale import ScaleChoice, rank_scales
from awqkit.search.target import aim_error, corrected_target

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


def round_linear(weight: Tensor, rows: Rows) -> RoundedLinear:
    """The best stage that beats rounding to nearest on plain grids on the judging rows.

    weight: float32 [out, in], already scaled, like the rows' inputs.
    """
    plain = _nearest(weight, min_max_grid(weight), ())
    error = aim_error(plain.weight(), weight, rows.judge)
    for stage in (_second_order, _clipped):
        rounded = stage(weight, rows.search)
        if aim_error(rounded.weight(), weight, rows.judge) < error:
            return rounded
    return plain


def serve_outputs(
    rounded: RoundedLinear, weight: Tensor, rows: Rows, outputs: Sequence[Tensor], *, seed: int
) -> RoundedLinear:
    """The same linear with its codes moved by what the block's output minds.

    outputs: diagonal blocks of the second moments of the gradient by the linear's outputs. Its rows
    of one of them stay as they are unless the judging rows prefer the other.
    """
    target = corrected_target(weight, rows.search)
    codes, kept, start = [], rounded.kept, 0
    for moments in outputs:
        part = slice(start, start + len(moments))
        grid = GroupGrid(rounded.grid.scale[part], rounded.grid.zero[part])
        before = rounded.codes[part]
        after = descend_jointly(target[part], before, grid, rows.search.gram, moments, seed=seed)
        errors = [
            aim_error(levels(in_groups(c), grid).flatten(-2), weight[part], rows.judge, moments)
            for c in (before, after)
        ]
        helps = errors[1] < errors[0]
        codes.append(after if helps else before)
        kept = (*kept, "joint") if helps and "joint" not in kept else kept
        start = part.stop
    return RoundedLinear(torch.cat(codes), rounded.grid, kept)


def _clipped(weight: Tensor, moments: Moments) -> RoundedLinear:
    return _nearest(weight, search_clip(weight, moments.gram), ("clip",))


def _nearest(weight: Tensor, grid: GroupGrid, kept: tuple[str, ...]) -> RoundedLinear:
    codes = nearest_codes(in_groups(weight), grid).flatten(-2)
    return RoundedLinear(codes, grid, kept)


def _second_order(weight: Tensor, moments: Moments) -> RoundedLinear:
    target = corrected_target(weight, moments)
    codes, grid = round_second_order(target, moments.gram)
    codes, grid = refine(target, codes, grid, moments.gram)
    corrected = ("corrected",) if moments.drift is not None else ()
    return RoundedLinear(codes, grid, (*corrected, "second-order"))
