"""Second-order rounding (Frantar et al., 2022, "GPTQ"; as Chee et al., 2023, "QuIP", write it).

With H = L · D · Lᵀ, L of unit diagonal, the output error of E is the sum over the columns k of
D_k · (E_k + Σ_{j > k} E_j L_jk)². Rounding from the last column to the first, each against what
the columns before it have left, makes every term small in turn; no inverse of H is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE, MAX_CODE
from awqkit.search.affine import GroupGrid
from awqkit.search.products import has_triton

#: Share of the mean diagonal that is added to it, so that the Gram matrix can be factorised.
DAMPING = 0.01


def round_second_order(weight: Tensor, grid: GroupGrid, gram: Tensor) -> Tensor:
    """Codes [out, in] as float32: column by column, each one's error fed into the later ones.

    weight: float32 [out, in]; gram: E[x xᵀ] of its inputs, [in, in]. Columns of large second
    moment are rounded first ("act order"); grids stay those of the natural order.
    """
    order = gram.diagonal().argsort()
    feedback = _feedback(gram, order)
    target, group = weight[:, order], (order // GROUP_SIZE).int()
    codes, error = torch.empty_like(target), torch.empty_like(target)
    round_block = round_columns
    if weight.is_cuda and has_triton():
        from awqkit.search.rounding_kernel import round_columns as round_block
    for end in range(weight.shape[1], 0, -GROUP_SIZE):
        part = slice(end - GROUP_SIZE, end)
        value = target[:, part] + error[:, end:] @ feedback[end:, part]
        codes[:, part], error[:, part] = round_block(
            value, target[:, part], grid, group[part], feedback[part, part]
        )
    return codes[:, order.argsort()]


def round_columns(
    value: Tensor, target: Tensor, grid: GroupGrid, group: Tensor, feedback: Tensor
) -> tuple[Tensor, Tensor]:
    """Round GROUP_SIZE columns, the last one first; their codes and errors, [out, GROUP_SIZE].

    value: target with the feedback of the columns that are rounded already.  group: of each column.
    """
    scale, zero = grid.scale[:, group], grid.zero[:, group]
    value, codes, error = value.clone(), torch.empty_like(value), torch.empty_like(value)
    for column in range(value.shape[1] - 1, -1, -1):
        code = value[:, column] / scale[:, column] + zero[:, column]
        code = code.round_().clamp_(0, MAX_CODE)
        codes[:, column] = code
        error[:, column] = target[:, column] - (code - zero[:, column]) * scale[:, column]
        value[:, :column] += torch.outer(error[:, column], feedback[column, :column])
    return codes, error


def _feedback(gram: Tensor, order: Tensor) -> Tensor:
    """L of the damped Gram matrix in this order; what lies above its diagonal means nothing.

    A channel that never fires gets the mean diagonal: its weights round to nearest, alone.
    """
    ordered = gram[order.unsqueeze(1), order]
    diagonal = ordered.diagonal()
    fires = diagonal > 0
    mean = float(diagonal[fires].mean()) if fires.any() else 1.0
    diagonal[~fires] = mean
    damping = DAMPING * mean
    diagonal += damping
    factor, failed = torch.linalg.cholesky_ex(ordered)
    while failed:
        diagonal += 9 * damping
        damping *= 10
        factor, failed = torch.linalg.cholesky_ex(ordered)
    return factor.div_(factor.diagonal().clone())
