"""Vectors into the pages of a layer and out of them again, in torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit_runtime.cache.page_codec import (
    dequantize_vectors,
    pack_codes,
    quantize_vectors,
    unpack_codes,
)
from awqkit_runtime.cache.page_format import (
    PAGE_TOKENS,
    PARAM_DTYPE,
    PARAMS_PER_VECTOR,
    PageFormat,
)

#: The scale and the minimum of a vector, moved as one number.
_PAIR = torch.int32


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerRows:
    """The pages of one layer as torch moves them: one vector after another, through all pages."""

    format: PageFormat
    #: [rows, n] of keys and then of values in one where both are of one width, else in two.
    stores: tuple[Tensor, ...]
    #: int32 [rows], scale and minimum as one number; None where dense. Of one dimension, in which
    #: single numbers move four times as fast as rows of one.
    params: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class RowStarts:
    """Rows of the first token of page 0, of each head; the same for every layer."""

    #: int64 [2 · kv_heads, 1], keys and then values in one store, or [kv_heads, 1] in both.
    vectors: Tensor
    #: int64 [2 · kv_heads, 1].
    params: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRows:
    """Rows of N tokens, head by head; the same for every layer."""

    #: int64 [2 · kv_heads · N], keys and then values in one store, or [kv_heads · N] in both.
    vectors: Tensor
    #: int64 [2 · kv_heads · N]; None where pages are dense.
    params: Tensor | None


def layer_rows(format: PageFormat, stores: tuple[Tensor, ...], params: Tensor | None) -> LayerRows:
    """stores: one of keys and then values, or two, [..., n]; params: as LayerPages has them."""
    return LayerRows(
        format=format,
        stores=tuple(store.view(-1, store.shape[-1]) for store in stores),
        params=None if params is None else params.view(_PAIR).view(-1),
    )


def row_starts(layer: LayerRows) -> RowStarts:
    """Of pages like those of this layer."""
    store, heads = layer.stores[0], layer.format.num_kv_heads
    params = torch.arange(0, 2 * heads * PAGE_TOKENS, PAGE_TOKENS, device=store.device)
    vectors = params[:heads]
    if len(layer.stores) == 1:
        vectors = torch.cat((vectors, vectors + store.shape[0] // 2))
    return RowStarts(vectors=vectors.unsqueeze(1), params=params.unsqueeze(1))


def token_rows(format: PageFormat, starts: RowStarts, slots: Tensor) -> TokenRows:
    """slots: int64 [N]."""
    heads, pages_before = format.num_kv_heads, slots // PAGE_TOKENS
    # A slot lies PAGE_TOKENS rows further for each page in front of it and each further head.
    first = torch.add(slots, pages_before, alpha=(heads - 1) * PAGE_TOKENS)
    vectors = (first + starts.vectors).view(-1)
    if not format.quantized:
        return TokenRows(vectors=vectors, params=None)
    first = torch.add(first, pages_before, alpha=heads * PAGE_TOKENS)
    return TokenRows(vectors=vectors, params=(first + starts.params).view(-1))


def write_vectors(layer: LayerRows, k: Tensor, v: Tensor, rows: TokenRows) -> None:
    """Store k and v [N, kv_heads, head_dim], in any float dtype."""
    parts = [x.transpose(0, 1) for x in (k, v)]
    vectors = [torch.cat(parts)] if len(layer.stores) == 1 else parts
    if layer.params is None or rows.params is None:
        for store, part in zip(layer.stores, vectors, strict=True):
            store.index_copy_(0, rows.vectors, part.flatten(0, 1).to(store.dtype))
        return
    found = []
    for store, part, bits in zip(layer.stores, vectors, _bits(layer), strict=True):
        codes, params = quantize_vectors(part.flatten(0, 1), bits)
        store.index_copy_(0, rows.vectors, pack_codes(codes, bits))
        found.append(params)
    layer.params.index_copy_(0, rows.params, _joined(found).view(_PAIR).view(-1))


def read_vectors(layer: LayerRows, rows: TokenRows) -> tuple[Tensor, Tensor]:
    """k and v [N, kv_heads, head_dim] of N tokens; those of one head lie in one piece.

    float32 from quantized pages and on a CPU, else the model's dtype.
    """
    form = layer.format
    stored = [store.index_select(0, rows.vectors) for store in layer.stores]
    if layer.params is None or rows.params is None:
        vectors = _joined(stored)
        if vectors.device.type == "cpu":
            # What attention computes in there, in one allocation, which is given back and taken
            # again more cheaply than two.
            vectors = vectors.float()
    else:
        shape = (rows.params.shape[0], form.head_dim)
        vectors = torch.empty(shape, device=rows.params.device)
        parts = vectors.chunk(len(stored))
        for codes, bits, part in zip(stored, _bits(layer), parts, strict=True):
            unpack_codes(codes, bits, part)
        pairs = layer.params.index_select(0, rows.params)
        dequantize_vectors(vectors, pairs.view(PARAM_DTYPE).view(-1, PARAMS_PER_VECTOR))
    k, v = vectors.view(2, form.num_kv_heads, -1, form.head_dim).transpose(1, 2)
    return k, v


def _bits(layer: LayerRows) -> tuple[int, ...]:
    """Of the codes in each store."""
    return (layer.format.k_bits, layer.format.v_bits)[: len(layer.stores)]


def _joined(parts: list[Tensor]) -> Tensor:
    """Nothing is copied where there is one part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
