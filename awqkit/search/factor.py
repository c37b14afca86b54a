"""Cholesky factors of matrices that may fill much of a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

#: A matrix on a GPU that is wider than this takes hundreds of megabytes, and is factorised where it
#: lies, so many columns at once.
WIDE, PANEL = 10000, 4096


def cholesky(matrix: Tensor) -> Tensor | None:
    """L with L · Lᵀ = matrix, below and on the diagonal; above it anything may stand.

    matrix: float32 [n, n], symmetric; consumed, since a wide one leaves no room for a second. None
    where it is not positive definite.
    """
    if matrix.is_cuda and len(matrix) > WIDE:
        return _in_place(matrix, PANEL)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return None if failed else factor


def _in_place(matrix: Tensor, panel: int) -> Tensor | None:
    """Panel by panel, each of which is then taken out of what lies to its right."""
    for start in range(0, len(matrix), panel):
        part, end = slice(start, start + panel), start + panel
        own, failed = torch.linalg.cholesky_ex(matrix[part, part])
        if failed:
            return None
        matrix[part, part] = own
        if end >= len(matrix):
            break
        below = torch.linalg.solve_triangular(own.mT, matrix[end:, part], upper=True, left=False)
        matrix[end:, part] = below
        for first in range(end, len(matrix), panel):
            columns = slice(first, first + panel)
            matrix[first:, columns].addmm_(
                matrix[first:, part], matrix[columns, part].T, alpha=-1.0
            )
    return matrix


def solve(factor: Tensor, wanted: Tensor) -> Tensor:
    """X with X · (L · Lᵀ) = wanted [out, n], for L as `cholesky` gives it."""
    half = torch.linalg.solve_triangular(factor, wanted.T, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True).T
