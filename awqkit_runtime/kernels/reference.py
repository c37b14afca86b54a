"""Plain torch twins of the compiled kernels: what they must compute, and what runs without them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from awqkit_runtime.kernels.packed_w4 import BLOCK_ROWS, PackedW4, unpack_w4

#: Weights that are unpacked at once: no float32 copy of a whole layer is ever made.
_PANEL_ELEMENTS = 2**22


def w4_linear(x: Tensor, weight: PackedW4, bias: Tensor | None = None) -> Tensor:
    """x [..., in] -> [..., out] in x's dtype: float32 products and sums of exact weights.

    The bias counts as a number of x's dtype.
    """
    wide = x.float()
    products = [wide @ unpack_w4(panel).dequantize().T for panel in _panels(weight)]
    product = torch.cat(products, dim=-1)
    if bias is not None:
        product += bias.to(x.dtype).float()
    return product.to(x.dtype)


def _panels(weight: PackedW4) -> Iterator[PackedW4]:
    step = max(1, _PANEL_ELEMENTS // (weight.in_features * BLOCK_ROWS))
    for block in range(0, weight.codes.shape[0], step):
        blocks = slice(block, block + step)
        yield replace(
            weight,
            codes=weight.codes[blocks],
            group_params=weight.group_params[blocks],
            out_features=min(step * BLOCK_ROWS, weight.out_features - block * BLOCK_ROWS),
        )
