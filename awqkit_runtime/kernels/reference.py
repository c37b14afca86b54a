"""Plain torch twins of the compiled kernels: what they must compute, and what runs without them."""

from __future__ import annotations

from torch import Tensor

from awqkit_runtime.kernels.packed_w4 import PackedW4, unpack_w4


def w4_linear(x: Tensor, weight: PackedW4, bias: Tensor | None = None) -> Tensor:
    """x [..., in] -> [..., out] in x's dtype: float32 products and sums of exact weights.

    The bias counts as a number of x's dtype.
    """
    product = x.float() @ unpack_w4(weight).dequantize().T
    if bias is not None:
        product += bias.to(x.dtype).float()
    return product.to(x.dtype)
