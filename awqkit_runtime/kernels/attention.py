"""Causal attention with grouped queries and sliding windows, in torch.

Which keys a query sees follows from positions alone, so one plan serves every layer of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

#: All but cuDNN's, which takes some 50 ms to make a kernel for every number of keys it has not met.
_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
#: Query rows that are attended at once; bounds the size of masks and skips keys in their future.
BLOCK_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class AttentionBlock:
    """Consecutive queries of equally long sequences and the range of keys that any of them sees."""

    queries: slice
    keys: slice
    #: bool [batch, 1, queries, keys]; None: every query sees every key.
    visible: Tensor | None


def plan_attention(
    query_start: Sequence[int],
    key_start: Sequence[int],
    *,
    num_queries: int,
    window: int | None,
    device: torch.device,
) -> tuple[AttentionBlock, ...]:
    """Blocks that cover num_queries queries in each of len(query_start) sequences.

    query_start, key_start: position of each sequence's first query and of its first key. A query
    at position p sees the keys at positions (p − window, p]; later keys are padding to it.
    """
    offsets = torch.tensor(query_start) - torch.tensor(key_start)
    blocks = []
    for start in range(0, num_queries, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, num_queries)
        # In keys counted from the first: the last one that each query of each sequence sees.
        last = offsets.unsqueeze(1) + torch.arange(start, stop)
        first = torch.zeros_like(last) if window is None else (last - window + 1).clamp_(min=0)
        keys = slice(int(first.min()), int(last.max()) + 1)
        blocks.append(
            AttentionBlock(
                queries=slice(start, stop), keys=keys, visible=_visible(first, last, keys, device)
            )
        )
    return tuple(blocks)


def _visible(first: Tensor, last: Tensor, keys: slice, device: torch.device) -> Tensor | None:
    if bool((first == keys.start).all()) and bool((last == keys.stop - 1).all()):
        return None
    first, last = first.to(device), last.to(device)
    key = torch.arange(keys.start, keys.stop, device=device)
    visible = (key <= last.unsqueeze(-1)) & (key >= first.unsqueeze(-1))
    return visible.unsqueeze(1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Sequence[AttentionBlock],
    *,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """softmax(scale · q·kᵀ) · v over the keys that each query sees.

    With a softcap the scores x become softcap · tanh(x / softcap) before the softmax.

    q: [batch, T, heads, head_dim]; k, v: [batch, S, kv_heads, head_dim], in any float dtypes;
    heads is a multiple of kv_heads. Returns q's shape and dtype. Computed in float32 on a CPU,
    where that is the fast type too, and in q's dtype elsewhere.
    """
    compute = torch.float32 if q.device.type == "cpu" else q.dtype
    k, v = k.to(compute).transpose(1, 2), v.to(compute).transpose(1, 2)
    with _without_cudnn(q.device):
        results = [_attend_block(q.to(compute), k, v, block, scale, softcap) for block in blocks]
    return (results[0] if len(results) == 1 else torch.cat(results, dim=1)).to(q.dtype)


def attend_singly(
    q: Tensor,
    rows: Sequence[int],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """As attend(), for some rows of q, each of which sees all of keys and values of its own.

    q: [T, heads, head_dim]; keys, values: [1, kv_heads, S, head_dim] for each of the rows, in q's
    dtype, in which all is computed. Returns [rows, heads, head_dim]. Each row is computed by
    itself, in shapes that follow from its S alone.
    """
    kv_heads = keys[0].shape[1]
    grouped = q.view(q.shape[0], kv_heads, -1, q.shape[-1])
    with _without_cudnn(q.device):
        results = [
            _attend_rows(grouped[row : row + 1], k, v, None, scale, softcap)
            for row, k, v in zip(rows, keys, values, strict=True)
        ]
    return torch.cat(results).flatten(1, 2)


def _without_cudnn(device: torch.device) -> AbstractContextManager[None]:
    return sdpa_kernel(_BACKENDS) if device.type == "cuda" else nullcontext()


def _attend_block(
    q: Tensor, k: Tensor, v: Tensor, block: AttentionBlock, scale: float, softcap: float | None
) -> Tensor:
    """The queries that share a key-value head become rows of one product; nothing is repeated."""
    q = q[:, block.queries]
    k, v = k[:, :, block.keys], v[:, :, block.keys]
    batch, queries, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    rows = q.view(batch, queries, kv_heads, group, head_dim).transpose(1, 2)
    rows = rows.reshape(batch, kv_heads, queries * group, head_dim)
    visible = block.visible
    if visible is not None and group > 1 and queries > 1:
        visible = visible.repeat_interleave(group, dim=2)
    out = _attend_rows(rows, k, v, visible, scale, softcap)
    out = out.view(batch, kv_heads, queries, group, head_dim).transpose(1, 2)
    return out.reshape(batch, queries, heads, head_dim)


def _attend_rows(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """q [batch, kv_heads, rows, head_dim], k and v [batch, kv_heads, S, head_dim] → like q."""
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)
    # torch's own attention cannot cap its scores.
    scores = (q @ k.transpose(-1, -2)).float().mul_(scale / softcap).tanh_().mul_(softcap)
    if visible is not None:
        scores.masked_fill_(~visible, float("-inf"))
    return torch.softmax(scores, dim=-1).to(v.dtype) @ v
