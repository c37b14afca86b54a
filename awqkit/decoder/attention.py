"""Causal attention in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from awqkit.decoder.softcap import soft_cap

#: Queries whose capped scores are in memory at once.
CAPPED_QUERIES = 256


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention of the last T positions over all S.

    q: [batch, heads, T, head_dim]; k, v: [batch, kv_heads, S, head_dim]; returns q's shape.
    """
    queries, keys = q.shape[2], k.shape[2]
    if softcap is not None:
        return _attend_capped(q, k, v, scale=scale, window=window, softcap=softcap)
    if queries == keys and (window is None or window >= keys):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=queries > 1, scale=scale, enable_gqa=True
        )
    if queries == 1 and (window is None or window >= keys):
        mask = None
    else:
        mask = _visible(torch.arange(keys - queries, keys, device=q.device), keys, window)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)


def _attend_capped(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float
) -> Tensor:
    """torch's own attention cannot cap its scores."""
    queries, keys = q.shape[2], k.shape[2]
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    positions = torch.arange(keys - queries, keys, device=q.device)
    results = []
    for start in range(0, queries, CAPPED_QUERIES):
        rows = slice(start, start + CAPPED_QUERIES)
        scores = soft_cap(q[:, :, rows] @ k.transpose(-1, -2) * scale, softcap)
        visible = _visible(positions[rows], keys, window)
        scores = scores.float().masked_fill(~visible, float("-inf"))
        results.append(torch.softmax(scores, dim=-1).to(q.dtype) @ v)
    return torch.cat(results, dim=2)


def _visible(positions: Tensor, keys: int, window: int | None) -> Tensor:
    """Which keys the queries at these positions see: bool [T, S]."""
    position = positions.unsqueeze(1)
    key = torch.arange(keys, device=positions.device)
    mask = key <= position
    if window is not None:
        mask &= key > position - window
    return mask
