"""A linear layer with 4-bit weights and float activations."""

from __future__ import annotations

from torch import Tensor

from awqkit_runtime.kernels import native, reference
from awqkit_runtime.kernels.packed_w4 import PackedW4, pack_w4

__all__ = ["PackedW4", "pack_w4", "w4_linear"]

#: From here on torch's float32 product of unpacked weights beats the scalar variant (measured).
_SCALAR_TOKENS = 16


def w4_linear(
    x: Tensor, weight: PackedW4, bias: Tensor | None = None, *, isa: str | None = None
) -> Tensor:
    """y[..., n] = sum_k x[..., k] * (code[n, k] - zero[n, k/128]) * scale[n, k/128] + bias[n].

    x: [..., in] float32, bfloat16 or float16 on the CPU; the result is [..., out] of that dtype.
    Products and sums are float32, whatever the dtype. A row's result does not depend on the other
    rows of x, unless the reference computes it. isa: one of `native.supported_isas()`; the
    fastest when None.
    """
    isa = isa or fastest_isa(native.cpu_isa(), x.numel() // weight.in_features)
    if isa == native.REFERENCE:
        return reference.w4_linear(x, weight, bias)
    if not x.is_cpu or x.dtype not in native.DTYPE_CODES:
        raise TypeError(f"w4_linear takes float32, bfloat16 or float16 on the CPU, not {x.dtype}")
    if x.shape[-1] != weight.in_features:
        raise ValueError(f"x has {x.shape[-1]} inputs, the weight {weight.in_features}")
    if not x.is_contiguous():
        x = x.contiguous()
    if bias is not None:
        bias = bias.to(x.dtype).contiguous()
    out = x.new_empty(*x.shape[:-1], weight.out_features)
    if out.numel() > 0:
        native.w4_linear(isa, x, weight.codes, weight.group_params, bias, out)
    return out


def fastest_isa(cpu_isa: str, tokens: int) -> str:
    """The way to compute `tokens` rows where the processor's best variant is cpu_isa.

    The vector variants unpack a weight once for several tokens and are always fastest; the scalar
    one unpacks it for each token, and loses to torch's product of unpacked weights.
    """
    if cpu_isa == "scalar" and tokens >= _SCALAR_TOKENS:
        return native.REFERENCE
    return cpu_isa
