"""The normalised Walsh-Hadamard transform along heads: orthogonal, symmetric, its own inverse.

It spreads what a few loud elements of a vector hold evenly over a block of them. Sylvester's
construction, H(2n) = [[H(n), H(n)], [H(n), −H(n)]] / √2, computed as log2(n) stages of butterflies:
sums and differences whose order is fixed, so that no bit depends on what else is transformed.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Of heads whose size is no power of two.
_BLOCK = 32


def hadamard_blocks(head_dim: int) -> tuple[int, ...]:
    """Sizes, powers of two, of the blocks that are transformed one by one: 128; 32, 32, 16 of 80.

    One block where head_dim is a power of two, otherwise blocks of 32, and ever smaller ones for
    the rest.
    """
    if head_dim & (head_dim - 1) == 0:
        return (head_dim,)
    whole, rest = divmod(head_dim, _BLOCK)
    powers = (2**bit for bit in reversed(range(_BLOCK.bit_length() - 1)))
    return (_BLOCK,) * whole + tuple(power for power in powers if rest & power)


def hadamard(x: Tensor) -> Tensor:
    """x [..., head_dim] → float32 of the same shape."""
    blocks = x.float().split(hadamard_blocks(x.shape[-1]), dim=-1)
    return torch.cat([_transform(block) for block in blocks], dim=-1)


def _transform(x: Tensor) -> Tensor:
    """One block: x float32 [..., n], n a power of two."""
    size, half = x.shape[-1], 1
    while half < size:
        pairs = x.unflatten(-1, (-1, 2, half))
        left, right = pairs.unbind(-2)
        x = torch.stack((left + right, left - right), dim=-2).flatten(-3)
        half *= 2
    return x * size**-0.5
