"""Codes moved where errors of different outputs, too, add up or cancel further on.

The objective is tr(G Δ H Δᵀ) of Δ = rounded − target: H the inputs' second moments, G those of the
gradient by the outputs (Tseng et al., 2025, "YAQA", equation 2). Rows are no longer independent, so
all codes are offered their best single move at once and a random share of them takes it, as often
as that lowers the objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE, MAX_CODE
from awqkit.search.affine import GroupGrid, in_groups, levels
from awqkit.search.equilibrium import Equilibrated
from awqkit.search.products import has_triton, product
from awqkit.search.rounding import damping_of

#: Times that moves are offered; the share taken at first, at most, and where it is given up.
OFFERS, FIRST_SHARE, LARGEST_SHARE, LEAST_SHARE = 80, 0.25, 0.5, 1e-5
#: Share of its mean diagonal added to G's, whose estimate is the noisier one.
OUTPUT_DAMPING = 0.1
#: Weights of the blocks that make their offers together on a GPU.
ELEMENTS_AT_ONCE = 1 << 25

#: Of a target, its codes and grid, some blocks of G and a seed: codes that serve it better.
Descent = Callable[[Tensor, Tensor, GroupGrid, Sequence[Tensor], int], Tensor]


def descend_jointly(
    target: Tensor,
    codes: Tensor,
    grid: GroupGrid,
    gram: Tensor,
    outputs: Sequence[Tensor],
    *,
    seed: int,
) -> Tensor:
    """Codes [out, in] of an objective that is no higher.

    target: float32 [out, in].  gram: H, [in, in].  outputs: the diagonal blocks of G, in order;
    rows behind the last of them stay as they are.
    """
    on_gpu = target.is_cuda and has_triton()
    descend = _descent_on_gpu(gram) if on_gpu else partial(_descend, gram)
    moved, start = codes.clone(), 0
    for blocks in _together(outputs, target.shape[1]) if on_gpu else [[each] for each in outputs]:
        part = slice(start, start + sum(map(len, blocks)))
        rows = GroupGrid(grid.scale[part], grid.zero[part])
        moved[part] = descend(target[part], codes[part], rows, blocks, seed)
        start = part.stop
    return moved


def _together(outputs: Sequence[Tensor], columns: int) -> Iterator[list[Tensor]]:
    """Blocks of one size that follow each other, in lists of at most ELEMENTS_AT_ONCE weights."""
    for size, blocks in groupby(outputs, len):
        same, count = list(blocks), max(1, ELEMENTS_AT_ONCE // (size * columns))
        yield from (same[start : start + count] for start in range(0, len(same), count))


def _descent_on_gpu(gram: Tensor) -> Descent:
    from awqkit.search.joint_descent_kernel import Shares, descend

    inputs = Equilibrated.of(gram, damping_of(gram))
    shares = Shares(first=FIRST_SHARE, largest=LARGEST_SHARE, least=LEAST_SHARE)

    def descend_blocks(
        target: Tensor, codes: Tensor, grid: GroupGrid, blocks: Sequence[Tensor], seed: int
    ) -> Tensor:
        outputs = Equilibrated.stacked(
            [Equilibrated.of(each, OUTPUT_DAMPING * _mean_diagonal(each)) for each in blocks]
        )
        return descend(
            target, codes, grid, inputs, outputs, offers=OFFERS, shares=shares, seed=seed
        )

    return descend_blocks


def _descend(
    gram: Tensor,
    target: Tensor,
    codes: Tensor,
    grid: GroupGrid,
    blocks: Sequence[Tensor],
    seed: int,
) -> Tensor:
    (outputs,) = blocks
    generator = torch.Generator(target.device).manual_seed(seed)
    scale = grid.scale.repeat_interleave(GROUP_SIZE, dim=1)
    input_damping, output_damping = damping_of(gram), OUTPUT_DAMPING * _mean_diagonal(outputs)

    def pressure(delta: Tensor) -> Tensor:
        """G Δ H, both damped."""
        inner = product(delta, gram).add_(delta, alpha=input_damping)
        return product(outputs, inner).add_(inner, alpha=output_damping)

    curvature = torch.outer(
        outputs.diagonal() + output_damping, gram.diagonal() + input_damping
    ).mul_(scale)
    slope = pressure(levels(in_groups(codes), grid).flatten(-2) - target)
    share = FIRST_SHARE
    for _ in range(OFFERS):
        best = (codes - slope / curvature).round_().clamp_(0, MAX_CODE)
        taken = torch.rand(codes.shape, generator=generator, device=codes.device) < share
        delta = (best - codes).mul_(taken).mul_(scale)
        change = pressure(delta)
        if float((delta * slope).sum().mul_(2) + (delta * change).sum()) < 0:
            codes = torch.where(taken, best, codes)
            slope += change
            share = min(LARGEST_SHARE, share * 1.1)
        else:
            share /= 2
            if share < LEAST_SHARE:
                break
    return codes


def _mean_diagonal(outputs: Tensor) -> float:
    return float(outputs.diagonal().mean().clamp(min=1e-30))
