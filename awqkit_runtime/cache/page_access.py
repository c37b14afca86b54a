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
    LayerPages,
    PageFormat,
)

#: The scale and the minimum of a vector, moved as one number.
_PAIR = torch.int32


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorRows:
    """Where the vectors of tokens lie, counted over pages, heads and tokens."""

    #: Of the keys, and of the values: int64 [kv_heads · N], head by head.
    vectors: Tensor
    #: Of the parameters of both, int64 [2 · kv_heads · N]; None where pages are dense.
    params: Tensor | None


def vector_rows(format: PageFormat, slots: Tensor) -> VectorRows:
    """The same for every layer. slots: int64 [N]."""
    heads = format.num_kv_heads
    return VectorRows(
        vectors=_rows(slots, heads), params=_rows(slots, 2 * heads) if format.quantized else None
    )


def write_vectors(pages: LayerPages, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Store k and v [T, kv_heads, head_dim], in any float dtype, at slots, int64 [T]."""
    places = (slots // PAGE_TOKENS, slots % PAGE_TOKENS)
    if pages.params is None:
        _put(pages.keys, places, k.to(pages.keys.dtype))
        _put(pages.values, places, v.to(pages.values.dtype))
        return
    k_codes, v_codes, params = _quantized(k, v, pages.format)
    _put(pages.keys, places, pack_codes(k_codes, pages.format.k_bits))
    _put(pages.values, places, pack_codes(v_codes, pages.format.v_bits))
    _put(pages.params.view(_PAIR), places, params.view(_PAIR))


def read_vectors(pages: LayerPages, rows: VectorRows) -> tuple[Tensor, Tensor]:
    """k and v [N, kv_heads, head_dim] of some tokens; those of one head lie in one piece.

    float32 from quantized pages and on a CPU, else the model's dtype.
    """
    form = pages.format
    count = rows.vectors.shape[0]
    shape = (2, count, form.head_dim)
    dtype = torch.float32 if form.quantized else form.dtype
    # Keys and values in one allocation, which is given back and taken again more cheaply than two.
    vectors = torch.empty(shape, dtype=dtype, device=rows.vectors.device)
    if pages.params is None or rows.params is None:
        torch.index_select(_by_rows(pages.keys), 0, rows.vectors, out=vectors[0])
        torch.index_select(_by_rows(pages.values), 0, rows.vectors, out=vectors[1])
        if vectors.device.type == "cpu":
            # What attention computes in there, in one allocation for the same reason.
            vectors = vectors.float()
    else:
        unpack_codes(_by_rows(pages.keys).index_select(0, rows.vectors), form.k_bits, vectors[0])
        unpack_codes(_by_rows(pages.values).index_select(0, rows.vectors), form.v_bits, vectors[1])
        # Of one dimension, which is the fast case of single numbers.
        pairs = pages.params.view(_PAIR).view(-1).index_select(0, rows.params)
        params = pairs.view(PARAM_DTYPE).view(*vectors.shape[:-1], PARAMS_PER_VECTOR)
        dequantize_vectors(vectors, params)
    k, v = vectors.unflatten(1, (form.num_kv_heads, count // form.num_kv_heads)).transpose(1, 2)
    return k, v


def _quantized(k: Tensor, v: Tensor, format: PageFormat) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of k, codes of v, parameters of both as one run of heads."""
    if format.k_bits == format.v_bits:
        codes, params = quantize_vectors(torch.cat((k, v), dim=1), format.k_bits)
        k_codes, v_codes = codes.chunk(2, dim=1)
        return k_codes, v_codes, params
    k_codes, k_params = quantize_vectors(k, format.k_bits)
    v_codes, v_params = quantize_vectors(v, format.v_bits)
    return k_codes, v_codes, torch.cat((k_params, v_params), dim=1)


def _put(stored: Tensor, places: tuple[Tensor, Tensor], vectors: Tensor) -> None:
    """vectors [T, heads, n] into stored [pages, heads, PAGE_TOKENS, n] at (page, offset)."""
    stored.transpose(1, 2).index_put_(places, vectors)


def _by_rows(stored: Tensor) -> Tensor:
    """[pages, heads, PAGE_TOKENS, n] as one row after another."""
    return stored.view(-1, stored.shape[-1])


def _rows(slots: Tensor, heads: int) -> Tensor:
    """Of the vectors of all heads, counted over pages, heads and tokens: int64 [heads · N]."""
    pages_before = slots // PAGE_TOKENS
    first = torch.add(slots, pages_before, alpha=(heads - 1) * PAGE_TOKENS)
    steps = torch.arange(0, heads * PAGE_TOKENS, PAGE_TOKENS, device=slots.device)
    return (first + steps.unsqueeze(1)).flatten()
