"""What the CUDA kernels compute, in torch, so that a CPU can test what is built around them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from awqkit_runtime.cache import decode_attention, kernel_step, page_kernels, prompt_attention
from awqkit_runtime.cache.key_frame import KeyFrame
from awqkit_runtime.cache.page_access import read_vectors, write_vectors
from awqkit_runtime.cache.page_format import PAGE_TOKENS, LayerPages, PageFormat
from awqkit_runtime.cache.page_rows import (
    LayerRows,
    TokenRows,
    layer_rows,
    row_starts,
    token_rows,
)
from awqkit_runtime.kernels import reference
from awqkit_runtime.kernels.rotary import HeadNorms
from awqkit_runtime.kernels.rotary_append import LayerFrame


def use_stand_ins(patch: pytest.MonkeyPatch) -> None:
    """For every kernel and torch's own attention on CUDA, on any device."""
    patch.setattr(page_kernels, "rotary_append_", rotary_append_)
    patch.setattr(page_kernels, "share_rows", share_rows)
    patch.setattr(page_kernels, "paged_decode", paged_decode)
    patch.setattr(prompt_attention, "ragged_attention", ragged_attention)
    patch.setattr(prompt_attention, "square_attention", square_attention)
    patch.setattr(prompt_attention, "page_gather_", page_gather_)
    patch.setattr(decode_attention, "decode_places", decode_places)
    patch.setattr(kernel_step, "appends_in_kernels", lambda pool: True)
    for module in (kernel_step, decode_attention):
        patch.setattr(module, "decodes_in_kernels", lambda pool, config: True)
    patch.setattr(kernel_step, "has_square_kernels", lambda device: True)


def rotary_append_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    pages: LayerPages,
    slots: Tensor,
    *,
    query_heads: int,
    norms: HeadNorms | None,
    frame: LayerFrame,
) -> None:
    form = pages.format
    kv_heads, head_dim = form.num_kv_heads, form.head_dim
    heads = {"query_heads": query_heads, "key_heads": kv_heads, "head_dim": head_dim}
    reference.rotary_(qkv, cos, sin, norms=norms, **heads)
    q, k, v = qkv.unflatten(1, (-1, head_dim)).split((query_heads, kv_heads, kv_heads), dim=1)
    whole = KeyFrame(
        mean=None if frame.mean is None else frame.mean.unsqueeze(0),
        channel_scale=None if frame.channel_scale is None else frame.channel_scale.unsqueeze(0),
        rotated=frame.rotated,
    )
    q.copy_(whole.queries(0, q))
    laid = whole.keys(0, k)
    if not form.quantized:
        k.copy_(laid)
    stored = slots >= 0
    layer, rows = _rows(pages, slots[stored])
    write_vectors(layer, laid[stored], v[stored], rows)


def decode_places(page_table: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    pages = page_table.long().gather(1, (positions.clamp(min=0) // PAGE_TOKENS).unsqueeze(1))
    slots = pages.squeeze(1) * PAGE_TOKENS + positions % PAGE_TOKENS
    return slots.where(positions >= 0, -1), (positions + 1).int()


def page_gather_(pages: LayerPages, page_ids: Tensor, first: int, k: Tensor, v: Tensor) -> None:
    positions = torch.arange(first, first + len(k))
    slots = page_ids.long()[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS
    for out, found in zip((k, v), read_vectors(*_rows(pages, slots)), strict=True):
        out.copy_(found)


def _rows(pages: LayerPages, slots: Tensor) -> tuple[LayerRows, TokenRows]:
    """Of pages that nothing is known of but what kernels see."""
    form = pages.format
    layer = layer_rows(form, (pages.keys, pages.values), pages.params)
    return layer, token_rows(form, row_starts(layer), slots)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """As far as the stand-in needs kernels.paged_decode.DecodeRows.

    shared_lengths: what the kernel's shares were found from.
    """

    format: PageFormat
    num_heads: int
    page_table: Tensor
    lengths: Tensor
    shared_lengths: Tensor
    window: int | None


def share_rows(
    format: PageFormat,
    num_heads: int,
    page_table: Tensor,
    lengths: Tensor,
    *,
    window: int | None,
    steady: bool = False,
) -> Rows:
    assert num_heads % format.num_kv_heads == 0
    for tensor, dims in ((page_table, 2), (lengths, 1)):
        assert tensor.dtype == torch.int32
        assert tensor.dim() == dims
        assert tensor.stride(-1) == 1
        assert len(tensor) == len(lengths)
    return Rows(
        format=format,
        num_heads=num_heads,
        page_table=page_table,
        lengths=lengths,
        shared_lengths=lengths.clone(),
        window=window,
    )


def paged_decode(
    q: Tensor, pages: LayerPages, rows: Rows, *, scale: float, softcap: float | None
) -> Tensor:
    assert softcap is None
    assert pages.format == rows.format
    assert q.shape == (len(rows.lengths), rows.num_heads, rows.format.head_dim)
    assert q.stride()[1:] == (rows.format.head_dim, 1)
    assert q.stride(0) % 4 == 0
    assert q.storage_offset() % 4 == 0
    assert torch.equal(rows.lengths, rows.shared_lengths)
    out = torch.zeros_like(q)
    for row, length in enumerate(rows.lengths.tolist()):
        shape = (length, pages.format.num_kv_heads, pages.format.head_dim)
        k, v = torch.empty(shape), torch.empty(shape)
        page_gather_(pages, rows.page_table[row], 0, k, v)
        out[row : row + 1], _ = _attend(q[row : row + 1], k, v, scale, True, rows.window)
    return out


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
    sizes = [ends.diff().tolist() for ends in (query_ends, key_ends)]
    assert [max(lengths) for lengths in sizes] == list(longest)
    assert [sum(lengths) for lengths in sizes] == [len(q), len(k)]
    parts = zip(q.split(sizes[0]), k.split(sizes[1]), v.split(sizes[1]), strict=True)
    outs, log_sums = zip(*(_attend(*part, scale, causal, window) for part in parts), strict=True)
    return torch.cat(outs), torch.cat(log_sums, dim=1)


def square_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    parts = zip(q, k, v, strict=True)
    return torch.stack([_attend(*part, scale, True, None)[0] for part in parts])


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: int | None
) -> tuple[Tensor, Tensor]:
    """q [T, heads, head_dim], k and v [S, kv_heads, head_dim], in float64."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, dim=1).transpose(0, 1) for x in (k, v))
    scores = q.double().transpose(0, 1) @ k.transpose(1, 2) * scale
    queries, keys = scores.shape[1:]
    # The last query stands where the last key does.
    distance = torch.arange(keys - queries, keys).unsqueeze(1) - torch.arange(keys)
    if causal:
        scores = scores.masked_fill(distance < 0, -torch.inf)
    if window is not None:
        scores = scores.masked_fill(distance >= window, -torch.inf)
    out = (scores.softmax(-1) @ v).transpose(0, 1)
    return out.to(q.dtype), scores.logsumexp(-1).float()
