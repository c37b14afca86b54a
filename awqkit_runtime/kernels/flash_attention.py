"""Attention of prompts on CUDA through torch's own kernels: no mask is ever made.

For rows of different lengths the FlashAttention-2 kernels (Dao, 2023), which torch brings for every
GPU from sm_80 on; for whole squares cuDNN's, which are faster from sm_90 on, but made anew for each
shape.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

#: In order; the second takes what the first does not.
_SQUARE_BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
_SQUARE_CAPABILITY = (9, 0)


def has_square_kernels(device: torch.device) -> bool:
    """Whether square_attention is faster than ragged_attention there."""
    return torch.cuda.get_device_capability(device) >= _SQUARE_CAPABILITY


def ragged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    longest: tuple[int, int],
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(scale · q·kᵀ) · v of several sequences, and the logarithms of the softmax's sums.

    q: BF16 [queries, heads, head_dim]; k, v: BF16 [keys, kv_heads, head_dim], the last dimension
    contiguous; the head size a multiple of 8 up to 256. query_ends, key_ends: int32
    [sequences + 1], rows where each sequence ends, from 0 on. longest: most queries and most keys
    of a sequence. causal: the last query of a sequence sees all its keys, the one before it all but
    the last, and so on, each no more than window of them; otherwise all see all. Returns q's shape
    and float32 [heads, queries].
    """
    out, log_sums, *_ = torch.ops.aten._flash_attention_forward(
        *(q, k, v, query_ends, key_ends, *longest),
        0.0,  # dropout
        causal,
        False,  # no debug mask
        scale=scale,
        window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
    )
    return out, log_sums


def square_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Causal attention of equally long sequences from their first token on.

    q: BF16 [sequences, T, heads, head_dim]; k, v: BF16 [sequences, T, kv_heads, head_dim]; the last
    dimension contiguous. Returns q's shape.
    """
    with sdpa_kernel(_SQUARE_BACKENDS, set_priority=True):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


class PiecewiseSum:
    """Attention over all keys from attention over pieces of them, weighted by their softmax sums.

    out = Σ exp(logsum_i − logsum) · out_i with logsum = log Σ exp(logsum_i), as in Dao et al.,
    2022, "FlashAttention", section 3.1; in FP32.
    """

    def __init__(self, out: Tensor, log_sums: Tensor) -> None:
        """out [queries, heads, head_dim]; log_sums float32 [heads, queries]."""
        self._dtype = out.dtype
        self._out = out.float()
        self._log_sums = log_sums

    def add(self, out: Tensor, log_sums: Tensor) -> None:
        total = torch.logaddexp(self._log_sums, log_sums)
        ours, theirs = ((part - total).exp().T.unsqueeze(-1) for part in (self._log_sums, log_sums))
        self._out.mul_(ours).add_(out.float().mul_(theirs))
        self._log_sums = total

    def result(self) -> Tensor:
        return self._out.to(self._dtype)
