"""One site from float weights to integers; every stage stays only where held-out rows agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
from awqkit.search.moments import Moments, output_error
from awqkit.search.rounding import round_second_order
from awqkit.search.scale import ScaleChoice, rounding_loss, search_scale


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


def choose_scale(
    weights: Sequence[Tensor],
    rows: Rows,
    *,
    tie: Callable[[Tensor], Tensor],
    realise: Callable[[Tensor], Tensor],
) -> ScaleChoice:
    """The best scale on the search rows, or the identity where the judging rows prefer that."""
    choice = search_scale(weights, rows.search, tie=tie, realise=realise)
    identity = realise(torch.ones_like(choice.scale))
    judged = rounding_loss(weights, rows.judge.gram, choice.scale)
    if judged < rounding_loss(weights, rows.judge.gram, identity):
        return choice
    return replace(choice, scale=identity, loss=choice.identity_loss, description="identity")


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
    return float(output_error(rounded - weight, rows.judge.gram))
