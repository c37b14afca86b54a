"""Root-mean-square norm (Zhang and Sennrich, 2019, equation 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, unit_offset: bool = False) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension; the mean in float32.

    x: [..., n]; weight: [n]. The normalised value is rounded to x.dtype before the weight
    multiplies it, as the models were trained. With unit_offset the factor is 1 + weight, and
    the product is taken in float32.
    """
    if x.is_cuda and not unit_offset:
        return F.rms_norm(x, x.shape[-1:], eps=eps) * weight  # the same, in a pass of its own
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if unit_offset:
        return (normalised * (1.0 + weight.float())).to(x.dtype)
    return normalised.to(x.dtype) * weight
