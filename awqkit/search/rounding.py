"""Second-order rounding (Frantar et al., 2022, "GPTQ", section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE, MAX_CODE
from awqkit.search.affine import GroupGrid

#: Share of the mean diagonal that is added to it, so that the Gram matrix can be inverted.
DAMPING = 0.01


def round_second_order(weight: Tensor, grid: GroupGrid, gram: Tensor) -> Tensor:
    """Codes [out, in] as float32: column by column, each one's error fed into the later ones.

    weight: float32 [out, in]; gram: E[x xᵀ] of its inputs, [in, in]. Columns of large second
    moment are rounded first ("act order"); grids stay those of the natural order.
    """
    order = gram.diagonal().argsort(descending=True)
    update = _inverse_root(gram[order][:, order])
    remaining = weight[:, order].clone()
    scale = grid.scale.repeat_interleave(GROUP_SIZE, dim=1)[:, order]
    zero = grid.zero.repeat_interleave(GROUP_SIZE, dim=1)[:, order]
    codes = torch.empty_like(remaining)
    for start in range(0, weight.shape[1], GROUP_SIZE):
        end = start + GROUP_SIZE
        part = slice(start, end)
        codes[:, part], errors = _round_columns(
            remaining[:, part], scale[:, part], zero[:, part], update[part, part]
        )
        remaining[:, end:] -= errors @ update[part, end:]
    return codes[:, order.argsort()]


def _round_columns(
    weight: Tensor, scale: Tensor, zero: Tensor, update: Tensor
) -> tuple[Tensor, Tensor]:
    """One block of columns: its codes and the errors that the columns after it must absorb."""
    weight = weight.clone()
    codes, errors = torch.empty_like(weight), torch.empty_like(weight)
    for column in range(weight.shape[1]):
        value = weight[:, column]
        code = (value / scale[:, column] + zero[:, column]).round().clamp(0, MAX_CODE)
        level = (code - zero[:, column]) * scale[:, column]
        error = (value - level) / update[column, column]
        weight[:, column:] -= torch.outer(error, update[column, column:])
        codes[:, column], errors[:, column] = code, error
    return codes, errors


def _inverse_root(gram: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped Gram matrix's inverse.

    A channel that never fires gets the mean diagonal: its weights round to nearest, alone.
    """
    gram = gram.clone()
    diagonal = gram.diagonal()
    fires = diagonal > 0
    mean = float(diagonal[fires].mean()) if fires.any() else 1.0
    diagonal[~fires] = mean
    damping = DAMPING * mean
    factor, failed = torch.linalg.cholesky_ex(gram + damping * torch.eye(len(gram)).to(gram))
    while failed:
        damping *= 10
        factor, failed = torch.linalg.cholesky_ex(gram + damping * torch.eye(len(gram)).to(gram))
    return torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
