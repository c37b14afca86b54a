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


def quantize_vectors(vectors: Tensor, max_codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and parameters of vectors along the last dimension.

    vectors: [..., heads, head_dim], any float dtype; max_codes: float32 [heads, 1], 255 or 15.
    Returns codes, uint8 with vectors' shape, and params, float16 [..., heads, 2]: scale, minimum.
    Codes are chosen for the stored FP16 parameters, so the error is at most scale/2, plus
    |minimum|·2⁻¹¹ where rounding put the minimum above a value. Values whose minimum or range
    FP16 cannot hold saturate.
    """
    wide = vectors.float()
    low, high = torch.aminmax(wide, dim=-1, keepdim=True)
    minimum = low.clamp_(-_LARGEST, _LARGEST).to(PARAM_DTYPE)
    stored_minimum = minimum.float()
    scale = ((high - stored_minimum) / max_codes).mul_(_SCALE_MARGIN).add_(_EPSILON)
    scale = scale.clamp_(_EPSILON, _LARGEST).to(PARAM_DTYPE)
    steps = (wide - stored_minimum).div_(scale.float()).round_()
    codes = torch.minimum(steps, max_codes).clamp_(min=0.0).to(torch.uint8)
    return codes, torch.cat((scale, minimum), dim=-1)


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
