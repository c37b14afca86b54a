"""Key and value vectors to codes and back: asymmetric, one scale and minimum per vector."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit_runtime.cache.page_format import PARAM_DTYPE

_LARGEST = torch.finfo(PARAM_DTYPE).max
#: The smallest positive FP16; as a scale it keeps constant vectors from dividing by zero.
_EPSILON = torch.finfo(PARAM_DTYPE).smallest_normal * torch.finfo(PARAM_DTYPE).eps
#: Makes up for rounding the scale to FP16, so that the top code always reaches the maximum.
_SCALE_MARGIN = 1.0 + torch.finfo(PARAM_DTYPE).eps


def quantize_vectors(vectors: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and parameters of vectors along the last dimension.

    vectors: [..., heads, head_dim], any float dtype; bits: 8 or 4. Returns codes, uint8 with
    vectors' shape, and params, float16 [..., heads, 2]: scale, minimum. Values beyond FP16's range
    saturate, and codes are chosen for the stored FP16 parameters.

    8 bits span minimum and maximum: the error is at most scale/2, plus |minimum|·2⁻¹¹ where
    rounding put the minimum above a value. 4 bits begin so, then take the line through the codes
    that loses least: scale and minimum by least squares, and codes once more. The sum of squared
    errors falls, by a tenth on normal numbers, while the largest one may grow.
    """
    wide = vectors.float().clamp(-_LARGEST, _LARGEST)
    top = 2**bits - 1
    params = _spanning_params(wide, top)
    codes = _nearest_codes(wide, *params, top)
    if bits == 4:
        params = _fitted_params(wide, codes, params[0])
        codes = _nearest_codes(wide, *params, top)
    return codes.to(torch.uint8), torch.cat(params, dim=-1)


def _spanning_params(wide: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Scale and minimum, float16 [..., 1], of codes 0 … top from the minimum to the maximum."""
    low, high = torch.aminmax(wide, dim=-1, keepdim=True)
    minimum = low.to(PARAM_DTYPE)
    # Divided by a tensor: by a number, torch multiplies with its reciprocal on a GPU.
    steps = torch.full_like(high, top)
    scale = (high - minimum.float()).div_(steps).mul_(_SCALE_MARGIN).add_(_EPSILON)
    return scale.clamp_(_EPSILON, _LARGEST).to(PARAM_DTYPE), minimum


def _fitted_params(wide: Tensor, codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum with the smallest Σ(x − code · scale − minimum)²; scale where all are one.

    The minimum is the best one for the scale as FP16 holds it.
    """
    centre, mean = codes.mean(-1, keepdim=True), wide.mean(-1, keepdim=True)
    offsets = codes - centre
    spread = offsets.square().sum(-1, keepdim=True)
    slope = (offsets * (wide - mean)).sum(-1, keepdim=True) / spread
    fitted = torch.where(spread > 0, slope, scale.float()).clamp_(_EPSILON, _LARGEST)
    stored = fitted.to(PARAM_DTYPE)
    minimum = (mean - centre * stored.float()).clamp_(-_LARGEST, _LARGEST)
    return stored, minimum.to(PARAM_DTYPE)


def _nearest_codes(wide: Tensor, scale: Tensor, minimum: Tensor, top: int) -> Tensor:
    """Float32 [..., head_dim]."""
    return ((wide - minimum.float()) / scale.float()).round_().clamp_(0.0, float(top))


def dequantize_vectors(codes: Tensor, params: Tensor) -> Tensor:
    """code · scale + minimum, in place: codes float32 [..., heads, head_dim], params as stored."""
    wide = params.float()
    return codes.mul_(wide[..., :1]).add_(wide[..., 1:])


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [..., head_dim] → bytes [..., head_dim · bits/8]."""
    if bits == 8:
        return codes
    low, high = codes.chunk(2, dim=-1)
    return low | (high << 4)


def unpack_codes(packed: Tensor, bits: int, out: Tensor) -> None:
    """Bytes [..., head_dim · bits/8] → codes as float32 into out [..., head_dim]."""
    if bits == 8:
        out.copy_(packed)
        return
    low, high = out.chunk(2, dim=-1)
    low.copy_(packed & 0xF)
    high.copy_(packed >> 4)
