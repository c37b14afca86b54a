"""Plain torch twins of the compiled kernels: what they must compute, and what runs without them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from awqkit_runtime.kernels.packed_w4 import BLOCK_ROWS, PackedW4, unpack_w4
from awqkit_runtime.kernels.rotary import HeadNorms

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


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, unit_offset: bool = False) -> Tensor:
    """x [rows, n], weight [n] -> [rows, n]; rounded to x's dtype before the weight multiplies."""
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if unit_offset:
        return (normalised * (1.0 + weight.float())).to(x.dtype)
    return normalised.to(x.dtype) * weight


def add_rms_norm(
    x: Tensor, delta: Tensor, weight: Tensor, eps: float, *, unit_offset: bool = False
) -> tuple[Tensor, Tensor]:
    """x + delta in x's dtype, and its norm."""
    total = x + delta
    return total, rms_norm(total, weight, eps, unit_offset=unit_offset)


def silu_mul(gate_up: Tensor) -> Tensor:
    """[rows, 2n], gate first -> silu(gate) · up, [rows, n]; rounded once."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (gate / (1.0 + torch.exp(-gate)) * up).to(gate_up.dtype)


def rotary_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    query_heads: int,
    key_heads: int,
    head_dim: int,
    norms: HeadNorms | None = None,
) -> None:
    """In place, as kernels.rotary.rotary_: norm the heads, turn pairs (i, i + rotary_dim/2)."""
    end, half = query_heads * head_dim, cos.shape[-1] // 2
    keys_end = end + key_heads * head_dim
    weights = (None, None) if norms is None else (norms.query, norms.key)
    for columns, weight in zip((slice(0, end), slice(end, keys_end)), weights, strict=True):
        heads = qkv[:, columns].unflatten(-1, (-1, head_dim))
        if norms is not None and weight is not None:
            heads = rms_norm(heads, weight, norms.eps, unit_offset=norms.unit_offset)
        wide, c, s = heads.float(), cos[:, None, :half], sin[:, None, :half]
        first, second, still = wide.split((half, half, head_dim - 2 * half), dim=-1)
        turned = (first * c - second * s, second * c + first * s, still)
        qkv[:, columns] = torch.cat(turned, dim=-1).flatten(1).to(qkv.dtype)
