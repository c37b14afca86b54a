"""Second-order rounding (Frantar et al., 2022, "GPTQ"; as Chee et al., 2023, "QuIP", write it).

With H = L · D · Lᵀ, L of unit diagonal, the output error of E is the sum over the columns k of
D_k · (E_k + Σ_{j > k} E_j L_jk)². Rounding from the last column to the first, each against what
the columns before it have left, makes every term small in turn; no inverse of H is needed.

D_k is also what an error of column k costs once the later columns answer it, so that each group's
range is chosen by it, on the values that are left to round when the group's turn comes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE, MAX_CODE
from awqkit.search.affine import GroupGrid
from awqkit.search.column_blocks import column_blocks, groups_of
from awqkit.search.factor import cholesky
from awqkit.search.products import has_triton, product
from awqkit.search.row_parts import row_parts
from awqkit.search.weighted_range import weighted_range

#: Share of the mean diagonal that is added to it, so that the Gram matrix can be factorised.
DAMPING = 0.01


def round_second_order(
    target: Tensor,
    gram: Tensor,
    *,
    choose_range: Callable[[Tensor, Tensor], GroupGrid] = weighted_range,
) -> tuple[Tensor, GroupGrid]:
    """Codes [out, in] as float32, and their grids: column by column, errors fed into later ones.

    target: the weights to come close to, float32 [out, in]; gram: E[x xᵀ] of the inputs, [in, in].
    Groups of large second moment are rounded first, and so are the columns of each ("act order").
    choose_range: from a group's values [out, GROUP_SIZE] and what errors of its columns cost.
    """
    order = _order(gram.diagonal())
    feedback, cost = _factors(gram, order)
    ordered = target[:, order]
    codes, error = torch.empty_like(ordered), torch.empty_like(ordered)
    groups = target.shape[1] // GROUP_SIZE
    scale, zero = (torch.empty(len(target), groups, device=target.device) for _ in range(2))
    round_block = round_columns
    if target.is_cuda and has_triton():
        from awqkit.search.rounding_kernel import round_columns as round_block
    places = (order[::GROUP_SIZE] // GROUP_SIZE).tolist()
    for block in reversed(list(column_blocks(target.shape[1]))):
        values = ordered[:, block].clone()
        product(error[:, block.stop :], feedback[block.stop :, block], onto=values)
        for part in reversed(list(groups_of(block))):
            inside = slice(part.start - block.start, part.stop - block.start)
            grid = choose_range(values[:, inside], cost[part])
            codes[:, part], left = round_block(
                values[:, inside], ordered[:, part], grid, feedback[part, part]
            )
            error[:, part] = left
            earlier = slice(block.start, part.start)
            product(left, feedback[part, earlier], onto=values[:, : inside.start])
            group = places[part.start // GROUP_SIZE]
            scale[:, group], zero[:, group] = grid.scale.flatten(), grid.zero.flatten()
    return codes[:, order.argsort()], GroupGrid(scale, zero)


def round_columns(
    value: Tensor, target: Tensor, grid: GroupGrid, feedback: Tensor
) -> tuple[Tensor, Tensor]:
    """Round one group's columns, the last one first; their codes and errors, [out, GROUP_SIZE].

    value: target with the feedback of the columns that are rounded already.  grid: [out].
    """
    scale, zero = grid.scale.flatten(), grid.zero.flatten()
    value, codes, error = value.clone(), torch.empty_like(value), torch.empty_like(value)
    for column in range(value.shape[1] - 1, -1, -1):
        code = (value[:, column] / scale + zero).round_().clamp_(0, MAX_CODE)
        codes[:, column] = code
        error[:, column] = target[:, column] - (code - zero) * scale
        value[:, :column] += torch.outer(error[:, column], feedback[column, :column])
    return codes, error


def damping_of(gram: Tensor, share: float = DAMPING) -> float:
    """What is added to the diagonal: a share of its mean over the channels that ever fire."""
    diagonal = gram.diagonal()
    fires = diagonal > 0
    return share * (float(diagonal[fires].mean()) if fires.any() else 1.0)


def _order(diagonal: Tensor) -> Tensor:
    """The columns in groups, by ascending second moment: of the groups, and within each."""
    grouped = diagonal.view(-1, GROUP_SIZE)
    first = grouped.sum(1).argsort().unsqueeze(1) * GROUP_SIZE
    inside = grouped.argsort(dim=1)
    return (first + inside[first.squeeze(1) // GROUP_SIZE]).flatten()


def _reordered(gram: Tensor, order: Tensor) -> Tensor:
    """gram[order, order] in a new matrix, without one of indexes, which would be twice as large."""
    ordered = torch.empty_like(gram)
    for rows in row_parts(len(gram), len(gram)):
        torch.index_select(gram[order[rows]], 1, order, out=ordered[rows])
    return ordered


def _factors(gram: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """L and D of the damped Gram matrix in this order; what lies above L's diagonal means nothing.

    A channel that never fires gets the mean diagonal: its weights round to nearest, alone.
    """
    damping = damping_of(gram)
    mean, factor = damping / DAMPING, None
    while factor is None:
        factor = cholesky(partial(_damped, gram, order, mean, damping))
        damping *= 10
    root = factor.diagonal().clone()
    return factor.div_(root), root.square()


def _damped(gram: Tensor, order: Tensor, mean: float, damping: float) -> Tensor:
    """gram[order, order], of larger diagonal."""
    ordered = _reordered(gram, order)
    diagonal = ordered.diagonal()
    diagonal[diagonal <= 0] = mean
    diagonal += damping
    return ordered
