"""Asymmetric groups: from ranges to scales and zero points, from weights to codes.

Weights are viewed in groups, float32 [out, groups, GROUP_SIZE]; ranges, scales and zero points
are [out, groups] (or broadcast against it).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.checkpoint import QuantizedWeight
from awqkit.checkpoint.layout import BITS, GROUP_SIZE, MAX_CODE

#: The smallest positive value of float16, which bfloat16 holds too.
SMALLEST_SCALE = 2.0**-24
LARGEST_SCALE = 65280.0  # of the values with eight significant bits, the last below float16's end


@dataclass(frozen=True)
class GroupGrid:
    """The levels of each group: scale · (code − zero). Both float32 [out, groups]."""

    scale: Tensor
    zero: Tensor


def storable(scale: Tensor) -> Tensor:
    """The nearest scale that float16 and bfloat16 both hold exactly, as float32."""
    rounded = scale.clamp(SMALLEST_SCALE, LARGEST_SCALE).bfloat16().half().float()
    return rounded.clamp(min=SMALLEST_SCALE)


def grid_for_range(low: Tensor, high: Tensor, last: int = MAX_CODE) -> GroupGrid:
    """The grid that spans [low, high] with 0 forced inside, so that 0 is always a level.

    last: the largest code.
    A group of zeros gets scale 1 and zero point 0.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    width = high - low
    scale = storable(torch.where(width > 0, width / last, torch.ones_like(width)))
    zero = (-low / scale).round().clamp(0, last)
    return GroupGrid(scale, zero)


def min_max_grid(weight: Tensor, last: int = MAX_CODE) -> GroupGrid:
    """The plain grid of a weight [out, in]: each group's own minimum and maximum."""
    grouped = in_groups(weight)
    return grid_for_range(grouped.amin(-1), grouped.amax(-1), last)


def in_groups(weight: Tensor) -> Tensor:
    """[out, in] → [out, groups, GROUP_SIZE]."""
    return weight.unflatten(-1, (-1, GROUP_SIZE))


def nearest_codes(grouped: Tensor, grid: GroupGrid, last: int = MAX_CODE) -> Tensor:
    """Codes 0…last as float32, each the level nearest to its weight."""
    scale, zero = grid.scale.unsqueeze(-1), grid.zero.unsqueeze(-1)
    return (grouped / scale).add_(zero).round_().clamp_(0, last)


def levels(codes: Tensor, grid: GroupGrid) -> Tensor:
    """The weights that the codes stand for, [out, groups, GROUP_SIZE]."""
    return (codes - grid.zero.unsqueeze(-1)).mul_(grid.scale.unsqueeze(-1))


def round_to_nearest(weight: Tensor, grid: GroupGrid) -> Tensor:
    """[out, in] → the same shape on the grid, float32."""
    grouped = in_groups(weight)
    return levels(nearest_codes(grouped, grid), grid).flatten(-2)


def to_quantized_weight(codes: Tensor, grid: GroupGrid, bits: int = BITS) -> QuantizedWeight:
    """codes: [out, in] of any dtype, whole numbers that so many bits hold."""
    return QuantizedWeight(
        codes=codes.to(torch.uint8),
        scales=grid.scale.half(),
        zeros=grid.zero.to(torch.uint8),
        bits=bits,
    )


def rounding_offsets(weight: Tensor, codes: Tensor, grid: GroupGrid) -> Tensor:
    """By how many steps the weight lies above its code's level, float16 [out, in]; at most ½."""
    steps = in_groups(weight.float()) / grid.scale.unsqueeze(-1) + grid.zero.unsqueeze(-1)
    return (steps.flatten(-2) - codes).clamp_(-0.5, 0.5).half()
