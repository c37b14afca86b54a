"""One site from float weights to integers; every stage stays only where held-out rows agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

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
from awqkit.search.row_parts import row_parts
from awqkit.search.scale import ScaleChoice, rank_scales
from awqkit.search.target import Aim, corrected_target

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
    scaled = torch.cat([weight * scale for weight in weights])
    parts = [scaled[part] for part in row_parts(*scaled.shape)]
    search = divided_by(rows.search, scale).gram
    deltas = [round_to_nearest(part, search_clip(part, search)).sub_(part) for part in parts]
    search_error = sum(float(output_error(delta, search)) for delta in deltas)
    del search  # of a wide input, as large as the weights: not held beside the next
    judge = divided_by(rows.judge, scale).gram
    judge_error = sum(float(output_error(delta, judge)) for delta in deltas)
    return _Errors(search=search_error, judge=judge_error)


def round_linear(
    weight: Tensor, rows: Rows, *, outputs: Sequence[Tensor] = (), seed: int = 0
) -> RoundedLinear:
    """The best stage that beats rounding to nearest on plain grids on the judging rows.

    weight: float32 [out, in], already scaled, like the rows' inputs.  outputs: diagonal blocks of
    what is minded of the linear's outputs, by which the codes are then moved, or nothing.  Of a
    large matrix each part of the rows chooses for itself.
    """
    parts = [
        _round_rows(weight[part], _lacking(rows, part), _within(outputs, part), seed)
        for part in row_parts(*weight.shape)
    ]
    if len(parts) == 1:
        return parts[0]
    return RoundedLinear(
        torch.cat([part.codes for part in parts]),
        GroupGrid(
            torch.cat([part.grid.scale for part in parts]),
            torch.cat([part.grid.zero for part in parts]),
        ),
        tuple(dict.fromkeys(stage for part in parts for stage in part.kept)),
    )


def _lacking(rows: Rows, part: slice) -> Rows:
    """The rows' moments as some of the outputs see them."""
    return Rows(rows.search.of_outputs(part), rows.judge.of_outputs(part))


def _within(outputs: Sequence[Tensor], part: slice) -> list[Tensor]:
    """Diagonal blocks of these outputs; those that lie across an edge are cut there."""
    cut, start = [], 0
    for moments in outputs:
        inside = slice(max(part.start - start, 0), max(part.stop - start, 0))
        if moments[inside].numel():
            cut.append(moments[inside, inside])
        start += len(moments)
    return cut


def _round_rows(weight: Tensor, rows: Rows, outputs: Sequence[Tensor], seed: int) -> RoundedLinear:
    judge = Aim.of(weight, rows.judge)
    target = corrected_target(Aim.of(weight, rows.search), judge)
    least = judge.error(round_to_nearest(weight, min_max_grid(weight)))
    stages = (partial(_second_order, target=target), _clipped)
    tried = (stage(weight, moments=rows.search) for stage in stages)
    better = (rounded for rounded in tried if judge.error(rounded.weight()) < least)
    rounded = next(better, None) or _nearest(weight, min_max_grid(weight), ())
    return _serving(outputs, rounded, target, rows.search, judge, seed=seed)


def _serving(
    outputs: Sequence[Tensor],
    rounded: RoundedLinear,
    target: Tensor,
    search: Moments,
    judge: Aim,
    *,
    seed: int,
) -> RoundedLinear:
    """The same linear with its codes moved by what is minded of its outputs.

    The rows of a block of outputs stay as they are unless the judging rows prefer the other.
    """
    if not outputs:
        return rounded
    moved = descend_jointly(target, rounded.codes, rounded.grid, search.gram, outputs, seed=seed)
    codes, start, helped = rounded.codes.clone(), 0, False
    for moments in outputs:
        part = slice(start, start + len(moments))
        grid = GroupGrid(rounded.grid.scale[part], rounded.grid.zero[part])
        seen = judge.rows(part)
        before, after = (
            seen.error(levels(in_groups(tried[part]), grid).flatten(-2), moments)
            for tried in (rounded.codes, moved)
        )
        if after < before:
            codes[part], helped = moved[part], True
        start = part.stop
    kept = (*rounded.kept, "joint") if helped else rounded.kept
    return RoundedLinear(codes, rounded.grid, kept)


def _clipped(weight: Tensor, moments: Moments) -> RoundedLinear:
    return _nearest(weight, search_clip(weight, moments.gram), ("clip",))


def _nearest(weight: Tensor, grid: GroupGrid, kept: tuple[str, ...]) -> RoundedLinear:
    codes = nearest_codes(in_groups(weight), grid).flatten(-2)
    return RoundedLinear(codes, grid, kept)


def _second_order(weight: Tensor, moments: Moments, *, target: Tensor) -> RoundedLinear:
    codes, grid = round_second_order(target, moments.gram)
    codes, grid = refine(target, codes, grid, moments.gram)
    corrected = () if target is weight else ("corrected",)
    return RoundedLinear(codes, grid, (*corrected, "second-order"))
