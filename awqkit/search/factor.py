"""Cholesky factors of matrices that may fill much of a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from awqkit.search.products import product

#: A matrix on a GPU that is wider than this takes hundreds of megabytes, and is factorised where it
#: lies, so many columns at once; and so many take part at once where a GPU solves with factors.
WIDE, PANEL = 10000, 2048
SOLVED_AT_ONCE = 1024

#: Of a [m, k], b [k, n] and onto [m, n], takes a @ b from onto, in place.
Subtract = Callable[[Tensor, Tensor, Tensor], None]


def cholesky(make: Callable[[], Tensor]) -> Tensor | None:
    """L with L · Lᵀ = matrix, below and on the diagonal; above it anything may stand.

    make: the matrix, float32 [n, n], symmetric, anew at each call; consumed, since a wide one
    leaves no room for a second. None where it is not positive definite.
    """
    matrix = make()
    if not _is_wide(matrix):
        factor, failed = torch.linalg.cholesky_ex(matrix)
        return None if failed else factor
    factor = _in_place(matrix, PANEL, _subtract_product)
    if factor is None:  # one direction may be so loud that what TF32 drops of it hides the others
        del matrix
        factor = _in_place(make(), PANEL, _subtract_exactly)
    return factor


def _is_wide(matrix: Tensor) -> bool:
    return matrix.is_cuda and len(matrix) > WIDE


def _subtract_product(a: Tensor, b: Tensor, onto: Tensor) -> None:
    product(a, b, onto=onto, alpha=-1.0)


def _subtract_exactly(a: Tensor, b: Tensor, onto: Tensor) -> None:
    onto.addmm_(a, b, alpha=-1.0)


def _in_place(matrix: Tensor, panel: int, subtract: Subtract) -> Tensor | None:
    """Panel by panel, each of which is then taken out of what lies to its right."""
    for start in range(0, len(matrix), panel):
        part, end = slice(start, start + panel), start + panel
        own, failed = torch.linalg.cholesky_ex(matrix[part, part])
        if failed:
            return None
        matrix[part, part] = own
        if end >= len(matrix):
            break
        matrix[end:, part] = _solved(own.mT, matrix[end:, part], upper=True)
        for first in range(end, len(matrix), panel):
            columns = slice(first, first + panel)
            subtract(matrix[first:, part], matrix[columns, part].T, matrix[first:, columns])
    return matrix


def solve(factor: Tensor, wanted: Tensor) -> Tensor:
    """X with X · (L · Lᵀ) = wanted [out, n], for L as `cholesky` gives it."""
    if not factor.is_cuda:
        half = torch.linalg.solve_triangular(factor, wanted.T, upper=False)
        return torch.linalg.solve_triangular(factor.mT, half, upper=True).T
    return _solved_in_blocks(factor, wanted, SOLVED_AT_ONCE)


def _solved_in_blocks(factor: Tensor, wanted: Tensor, step: int) -> Tensor:
    """Block by block of columns, forth and back, what others say of a block by one product.

    Products take eleven bits of the factor, which is little beside what damped it.
    """
    x = wanted.clone()
    blocks = [slice(start, start + step) for start in range(0, len(factor), step)]
    for block in blocks:
        before = slice(0, block.start)
        product(x[:, before], factor[block, before].T, onto=x[:, block], alpha=-1.0)
        x[:, block] = _solved(factor[block, block].mT, x[:, block], upper=True)
    for block in reversed(blocks):
        behind = slice(block.stop, None)
        product(x[:, behind], factor[behind, block], onto=x[:, block], alpha=-1.0)
        x[:, block] = _solved(factor[block, block], x[:, block], upper=False)
    return x


def _solved(triangle: Tensor, wanted: Tensor, *, upper: bool) -> Tensor:
    """X with X · triangle = wanted."""
    return torch.linalg.solve_triangular(triangle, wanted, upper=upper, left=False)
