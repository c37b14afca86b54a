"""Second moments brought near 1 by powers of two, so that 16 bits hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.search.row_parts import row_parts


@dataclass(frozen=True)
class Equilibrated:
    """A matrix M of moments as S · matrix · S, S the diagonal of powers of two `root`.

    matrix: float16 [n, n], of diagonal from ¼ to below 1, or 0; no entry exceeds 1.
    root, diagonal: float32 [n]; diagonal: that of the matrix, before it was rounded to 16 bits.
    """

    matrix: Tensor
    root: Tensor
    diagonal: Tensor

    @classmethod
    def of(cls, moments: Tensor, damping: Tensor | float = 0.0) -> Equilibrated:
        """moments: float32 [n, n], symmetric, without negative eigenvalues.

        damping: what is added to its diagonal.
        """
        diagonal = moments.diagonal() + damping
        root = _roots(diagonal)
        matrix = torch.empty(moments.shape, dtype=torch.float16, device=moments.device)
        for rows in row_parts(*moments.shape):
            matrix[rows] = (moments[rows] / root).div_(root[rows].unsqueeze(1))
        diagonal = diagonal.div_(root).div_(root)
        matrix.diagonal().copy_(diagonal)
        return cls(matrix, root, diagonal)

    @classmethod
    def stacked(cls, parts: Sequence[Equilibrated]) -> Equilibrated:
        """Several of one size: matrix [parts, n, n], the others [parts · n]."""
        return cls(
            torch.stack([part.matrix for part in parts]),
            torch.cat([part.root for part in parts]),
            torch.cat([part.diagonal for part in parts]),
        )


def _roots(diagonal: Tensor) -> Tensor:
    """Powers of two above the square roots; of what is silent, that of the quietest of the others.

    So that silent inputs, whose errors cost nothing, take nothing of the range of 16 bits.
    """
    root, fires = power_above(diagonal.sqrt()), diagonal > 0
    quietest = root.where(fires, torch.inf).amin()
    return root.where(fires, quietest.where(fires.any(), 1.0))


def power_above(x: Tensor) -> Tensor:
    """The next larger power of two of x, elementwise and exactly; 1 where x is 0."""
    return torch.where(x > 0, x / torch.frexp(x).mantissa, torch.ones_like(x))
