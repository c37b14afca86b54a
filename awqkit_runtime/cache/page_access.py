"""Vectors into the pages of a layer and out of them again, in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit_runtime.cache.page_codec import (
    dequantize_vectors,
    pack_codes,
    quantize_vectors,
    unpack_codes,
)
from awqkit_runtime.cache.page_format import PAGE_TOKENS, PARAM_DTYPE, PARAMS_PER_VECTOR
from awqkit_runtime.cache.page_rows import PARAM_PAIR, LayerRows, PageRows, TokenRows


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
    layer.params.index_copy_(0, rows.params, _joined(found).view(PARAM_PAIR).view(-1))


def read_vectors(layer: LayerRows, rows: TokenRows | PageRows) -> tuple[Tensor, Tensor]:
    """k and v [N, kv_heads, head_dim] of N tokens; those of one head lie in one piece.

    float32 from quantized pages and on a CPU, else the model's dtype.
    """
    form = layer.format
    vectors = read_rows(layer, rows)
    k, v = vectors.view(2, form.num_kv_heads, -1, form.head_dim).transpose(1, 2)
    return k, v


def read_rows(layer: LayerRows, rows: TokenRows | PageRows) -> Tensor:
    """The same in one, [2, kv_heads · N, head_dim], in the order of the rows: keys, then values."""
    form = layer.format
    stored = [_selected(store, rows.vectors, rows) for store in layer.stores]
    # Keys and values in one allocation, which is given back and taken again more cheaply than two.
    if layer.params is None or rows.params is None:
        vectors = _joined(stored)
        if vectors.device.type == "cpu":
            vectors = vectors.float()  # What attention computes in there.
        vectors = vectors.contiguous().view(-1, form.head_dim)
        _hide(vectors, rows)
    else:
        params = _selected(layer.params, rows.params, rows).contiguous()
        _hide(params.view(-1), rows)  # 0 · code + 0, whatever the code.
        vectors = _dequantized(stored, params, layer)
    return vectors.view(2, -1, form.head_dim)


def _selected(stored: Tensor, which: Tensor, rows: TokenRows | PageRows) -> Tensor:
    """The rows of stored, [rows] or [rows, n], that `which` names: one by one, or in runs of which
    each sequence's wanted ones are taken, [sequences and heads, tokens] or [the same, n].
    """
    if isinstance(rows, TokenRows):
        return stored.index_select(0, which)
    runs = stored.view(stored.shape[0] // PAGE_TOKENS, -1)
    return runs.index_select(0, which).view(-1, rows.tokens, *stored.shape[1:])[:, rows.wanted]


def _dequantized(stored: list[Tensor], params: Tensor, layer: LayerRows) -> Tensor:
    vectors = torch.empty((*params.shape, layer.format.head_dim), device=params.device)
    parts = vectors.chunk(len(stored))
    for codes, bits, part in zip(stored, _bits(layer), parts, strict=True):
        unpack_codes(codes, bits, part)
    pairs = params.view(PARAM_DTYPE).view(*params.shape, PARAMS_PER_VECTOR)
    return dequantize_vectors(vectors, pairs)


def _hide(found: Tensor, rows: TokenRows | PageRows) -> None:
    if isinstance(rows, PageRows) and rows.hidden is not None:
        found.index_fill_(0, rows.hidden, 0)


def _bits(layer: LayerRows) -> tuple[int, ...]:
    """Of the codes in each store."""
    return (layer.format.k_bits, layer.format.v_bits)[: len(layer.stores)]


def _joined(parts: list[Tensor]) -> Tensor:
    """Nothing is copied where there is one part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
