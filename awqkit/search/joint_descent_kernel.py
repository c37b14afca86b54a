"""Joint descent on a GPU: offers made, multiplied out and weighed without asking the host.

Both sides of the objective are divided by powers of two that bring their diagonals near 1, and so
are the changes of the weights: then factors of 16 bits have the eleven significant bits of TF32
and the range they need, at twice its speed, and the change of a code by one step is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE, MAX_CODE
from awqkit.search.affine import GroupGrid, in_groups, levels
from awqkit.search.equilibrium import Equilibrated, power_above
from awqkit.search.products import half_product

#: Rows of a group that one program makes offers for, and its warps.
ROWS_AT_ONCE, OFFER_WARPS = 32, 8
#: Programs that weigh a block's offer, and the elements that each looks at together.
PARTS, ELEMENTS_AT_ONCE = 256, 2048
#: Adding and subtracting it rounds a float32 below 2²² to the nearest integer, ties to even.
_ROUNDER = tl.constexpr(12582912.0)


@dataclass(frozen=True)
class Shares:
    """Of the codes that may move at an offer: at first, at most, and where it is given up."""

    first: float
    largest: float
    least: float


def descend(
    target: Tensor,
    codes: Tensor,
    grid: GroupGrid,
    inputs: Equilibrated,
    outputs: Equilibrated,
    *,
    offers: int,
    shares: Shares,
    seed: int,
) -> Tensor:
    """What joint_descent.descend does, by other random numbers, for some blocks of equal size.

    target, codes: float32 [blocks · out, in].  outputs: of matrix [blocks, out, out], and root and
    diagonal [blocks · out].  The blocks' offers are taken one by one.
    """
    blocks, rows, _ = outputs.matrix.shape
    columns = codes.shape[1]
    unit, steps = _steps(grid, inputs, outputs)
    delta = levels(in_groups(codes), grid).flatten(-2).sub_(target)
    delta = delta.mul_(outputs.root.unsqueeze(1) / unit).mul_(inputs.root).half()
    inner = torch.empty_like(delta)
    slope, change = (torch.empty(codes.shape, device=codes.device) for _ in range(2))

    def pressure(out: Tensor) -> None:
        """G Δ H, in the units of both."""
        half_product(delta, inputs.matrix, out=inner)
        half_product(
            outputs.matrix, inner.view(blocks, rows, columns), out=out.view(blocks, rows, columns)
        )

    pressure(slope)
    current = codes.to(torch.uint8)
    offered = current.clone()
    gains = torch.zeros(blocks, PARTS, device=codes.device)
    share = torch.full((offers + 2, blocks), shares.first, device=codes.device)
    tiles = (triton.cdiv(rows, ROWS_AT_ONCE), columns // GROUP_SIZE, blocks)
    # One more than there are, since each begins by taking the one before.
    for number in range(offers + 1):
        _offer[tiles](
            current,
            offered,
            slope,
            change,
            delta,
            steps,
            inputs.root,
            outputs.diagonal,
            inputs.diagonal,
            gains,
            share,
            rows,
            columns,
            number,
            _key(seed, number),
            ROWS=ROWS_AT_ONCE,
            GROUP=GROUP_SIZE,
            PARTS=PARTS,
            LAST=float(MAX_CODE),
            LARGEST=shares.largest,
            LEAST=shares.least,
            num_warps=OFFER_WARPS,
        )
        if number < offers:
            pressure(change)
            _weigh[(PARTS, blocks)](
                delta, slope, change, gains, rows * columns, ELEMENTS=ELEMENTS_AT_ONCE, PARTS=PARTS
            )
    return current.to(codes.dtype)


def _steps(grid: GroupGrid, inputs: Equilibrated, outputs: Equilibrated) -> tuple[Tensor, Tensor]:
    """A power of two, and one code's step over it by row and group, but for the input's root."""
    steps = grid.scale * outputs.root.unsqueeze(1)
    unit = power_above((steps * inputs.root.view(-1, GROUP_SIZE).amax(1)).max())
    return unit, steps.div_(unit)


def _key(seed: int, number: int) -> int:
    """Of 31 bits, another for each offer."""
    return (seed * 0x9E3779B1 + number * 0x85EBCA77) & 0x7FFFFFFF


@triton.jit(do_not_specialize=["number", "key"])
def _offer(  # type: ignore[no-untyped-def]
    codes_at,
    offered_at,
    slope_at,
    change_at,
    delta_at,
    steps_at,
    root_at,
    row_curvature_at,
    column_curvature_at,
    gains_at,
    share_at,
    rows,
    columns,
    number,
    key,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    PARTS: tl.constexpr,
    LAST: tl.constexpr,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
):
    """Take the offer before if it lowers the objective, and make the next one.

    All programs of a block come to the same share of codes that may move; one writes it down.
    """
    block = tl.program_id(2)
    gain = tl.sum(tl.load(gains_at + block * PARTS + tl.arange(0, PARTS)))
    share_at += number * tl.num_programs(2) + block
    share = tl.load(share_at)
    if number > 0:
        less = tl.where(share * 0.5 < LEAST, 0.0, share * 0.5)
        share = tl.where(gain < 0, tl.minimum(share * 1.1, LARGEST), less)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(share_at + tl.num_programs(2), share)

    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    inside = row < rows
    tile = inside[:, None]
    row += block * rows
    at = row[:, None] * columns + column[None, :]
    codes = tl.load(codes_at + at, mask=tile, other=0)
    slope = tl.load(slope_at + at, mask=tile, other=0.0)
    if gain < 0:
        codes = tl.load(offered_at + at, mask=tile, other=0)
        slope += tl.load(change_at + at, mask=tile, other=0.0)
        tl.store(codes_at + at, codes, mask=tile)
        tl.store(slope_at + at, slope, mask=tile)

    step = tl.load(steps_at + row * (columns // GROUP) + tl.program_id(1), mask=inside, other=1.0)
    step = step[:, None] * tl.load(root_at + column)[None, :]
    curvature = tl.load(row_curvature_at + row, mask=inside, other=1.0)[:, None]
    curvature = curvature * tl.load(column_curvature_at + column)[None, :]
    code = codes.to(tl.float32)
    best = tl.minimum(tl.maximum(code - slope / (curvature * step), 0.0), LAST)
    best = (best + _ROUNDER) - _ROUNDER
    offered = tl.where(_drawn(at, key) < share, best, code)
    tl.store(offered_at + at, offered.to(tl.uint8), mask=tile)
    tl.store(delta_at + at, ((offered - code) * step).to(tl.float16), mask=tile)


@triton.jit
def _drawn(at, key):  # type: ignore[no-untyped-def]
    """A number from 0 to below 1 for each place and key: MurmurHash3's finalizer (Appleby)."""
    x = at.to(tl.uint32) ^ key.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    x = x ^ (x >> 16)
    return (x >> 8).to(tl.float32) * (1.0 / 16777216.0)


@triton.jit
def _weigh(  # type: ignore[no-untyped-def]
    delta_at,
    slope_at,
    change_at,
    gains_at,
    elements,
    ELEMENTS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """By how much the offer would change the objective, in parts: ⟨Δ, 2 · slope + G Δ H⟩."""
    gain = tl.zeros((ELEMENTS,), tl.float32)
    block = tl.program_id(1)
    for start in range(tl.program_id(0) * ELEMENTS, elements, PARTS * ELEMENTS):
        at = start + tl.arange(0, ELEMENTS)
        inside = at < elements
        at += block * elements
        delta = tl.load(delta_at + at, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(slope_at + at, mask=inside, other=0.0)
        change = tl.load(change_at + at, mask=inside, other=0.0)
        gain += delta * (2.0 * slope + change)
    tl.store(gains_at + block * PARTS + tl.program_id(0), tl.sum(gain))
