"""After rounding: scales fitted to the codes, and codes moved one by one, in turns.

Both steps lower the output error tr(Δ · H · Δᵀ) of Δ = rounded − target, or leave a row as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE, MAX_CODE
from awqkit.search.affine import GroupGrid, in_groups, levels, storable
from awqkit.search.column_blocks import column_blocks, groups_of
from awqkit.search.equilibrium import Equilibrated
from awqkit.search.moments import row_errors
from awqkit.search.products import has_triton, product
from awqkit.search.rounding import damping_of

#: Times that scales are fitted and codes are moved.
ROUNDS = 2
#: A fitted scale may leave the former one by this factor at most.
LARGEST_CHANGE = 2.0
#: Share of the mean diagonal added to the normal equations, which codes of zero leave singular.
RIDGE = 1e-6


def refine(
    target: Tensor, codes: Tensor, grid: GroupGrid, gram: Tensor
) -> tuple[Tensor, GroupGrid]:
    """Better codes [out, in] and grid for the target [out, in]; gram: H; all float32."""
    pull = product(target, gram)
    halved = Equilibrated.of(gram) if gram.is_cuda and has_triton() else None
    for _ in range(ROUNDS):
        grid = fit_scales(target, codes, grid, gram, pull, halved)
        codes = descend(target, codes, grid, gram)
    return codes, grid


def fit_scales(
    target: Tensor,
    codes: Tensor,
    grid: GroupGrid,
    gram: Tensor,
    pull: Tensor,
    halved: Equilibrated | None = None,
) -> GroupGrid:
    """Scales of least output error for these codes, all groups of a row at once.

    pull: target · H.  halved: H of 16 bits, where a GPU's kernel takes it.  With C_g the steps
    (code − zero) of group g, zero elsewhere, a row solves the normal equations
    Σ_h (C_g · H · C_hᵀ) s_h = C_g · H · targetᵀ. A row that this does not help keeps its scales.
    """
    steps = in_groups(codes) - grid.zero.unsqueeze(-1)
    if halved is None:
        normal = normal_equations(steps, gram)
    else:
        from awqkit.search.normal_kernel import normal_equations as on_gpu

        normal = on_gpu(steps, halved)
    wanted = (in_groups(pull) * steps).sum(-1)
    diagonal = normal.diagonal(dim1=1, dim2=2)
    diagonal += RIDGE * diagonal.mean(1, keepdim=True).clamp(min=1e-20)
    factor, failed = torch.linalg.cholesky_ex(normal)
    fitted = torch.cholesky_solve(wanted.unsqueeze(-1), factor).squeeze(-1)
    change = fitted / grid.scale
    sound = (change > 1 / LARGEST_CHANGE) & (change < LARGEST_CHANGE) & (failed == 0).unsqueeze(1)
    fitted = storable(torch.where(sound, fitted, grid.scale))
    before, after = (
        row_errors(levels(in_groups(codes), tried).flatten(-2) - target, gram)
        for tried in (grid, GroupGrid(fitted, grid.zero))
    )
    better = (after < before).unsqueeze(1)
    return GroupGrid(torch.where(better, fitted, grid.scale), grid.zero)


def normal_equations(steps: Tensor, gram: Tensor) -> Tensor:
    """C_g · H · C_hᵀ of each row, [out, groups, groups], where h ≥ g; above the diagonal 0.

    steps: [out, groups, GROUP_SIZE].  gram: H.
    """
    rows, groups, _ = steps.shape
    normal = torch.zeros(rows, groups, groups, device=steps.device)
    for group in range(groups):
        start, end = group * GROUP_SIZE, (group + 1) * GROUP_SIZE
        reach = product(steps[:, group], gram[start:end, start:])
        normal[:, group:, group] = in_groups(reach).mul_(steps[:, group:]).sum(-1)
    return normal


def descend(target: Tensor, codes: Tensor, grid: GroupGrid, gram: Tensor) -> Tensor:
    """One sweep of coordinate descent: every code moves to the best level, given all others.

    As in rounding, a share of the mean diagonal is added to the Gram matrix's.
    """
    damping = damping_of(gram)
    error = levels(in_groups(codes), grid).flatten(-2) - target
    codes = codes.clone()
    move = move_codes
    if target.is_cuda and has_triton():
        from awqkit.search.refinement_kernel import move_codes as move
    for block in column_blocks(len(gram)):
        slope = product(error, gram[:, block]).add_(error[:, block], alpha=damping)
        for part in groups_of(block):
            inside = slice(part.start - block.start, part.stop - block.start)
            scale = grid.scale[:, part.start // GROUP_SIZE]
            own = gram[part, part].clone()
            own.diagonal().add_(damping)
            moved = move(codes[:, part], slope[:, inside], scale, own)
            change = (moved - codes[:, part]).mul_(scale.unsqueeze(1))
            error[:, part] += change
            codes[:, part] = moved
            later = slice(part.stop, block.stop)
            product(change, gram[part, later], onto=slope[:, inside.stop :])
    return codes


def move_codes(codes: Tensor, slope: Tensor, scale: Tensor, own: Tensor) -> Tensor:
    """One group's codes [out, GROUP_SIZE], moved column by column.

    slope: half the error's gradient by the weights, [out, GROUP_SIZE].  scale: [out].  own: the
    group's block of the Gram matrix, of positive diagonal.
    """
    codes, slope = codes.clone(), slope.clone()
    for column in range(codes.shape[1]):
        step = slope[:, column] / (own[column, column] * scale)
        moved = (codes[:, column] - step).round_().clamp_(0, MAX_CODE)
        change = (moved - codes[:, column]) * scale
        slope += torch.outer(change, own[column])
        codes[:, column] = moved
    return codes
