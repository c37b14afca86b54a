"""The pages of a layer as rows of vectors, and where tokens and whole pages lie among them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat

#: The scale and the minimum of a vector, moved as one number.
PARAM_PAIR = torch.int32


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


@dataclass(frozen=True, kw_only=True, eq=False)
class PageRows:
    """Runs of PAGE_TOKENS rows, of P pages of each sequence; the same for every layer."""

    #: int64 [2 · kv_heads · batch · P], keys and then values in one store, or
    #: [kv_heads · batch · P] in both.
    vectors: Tensor
    #: int64 [2 · kv_heads · batch · P]; None where pages are dense.
    params: Tensor | None
    #: Tokens of each sequence's pages: P · PAGE_TOKENS.
    tokens: int
    #: Those of them that are read.
    wanted: slice
    #: Of the 2 · kv_heads · N rows that are read those that are zeros: int64, or None.
    hidden: Tensor | None


def layer_rows(format: PageFormat, stores: tuple[Tensor, ...], params: Tensor | None) -> LayerRows:
    """stores: one of keys and then values, or two, [..., n]; params: as LayerPages has them."""
    return LayerRows(
        format=format,
        stores=tuple(store.view(-1, store.shape[-1]) for store in stores),
        params=None if params is None else params.view(PARAM_PAIR).view(-1),
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


def piece_rows(format: PageFormat, starts: RowStarts, keys: Tensor) -> TokenRows:
    """Of keys and the values beside them; keys as PagePool.piece_rows takes them."""
    heads = format.num_kv_heads
    vectors = (starts.vectors[::heads] + keys[0]).view(-1)
    if not format.quantized:
        return TokenRows(vectors=vectors, params=None)
    return TokenRows(vectors=vectors, params=(starts.params[::heads] + keys[1]).view(-1))


def page_rows(
    format: PageFormat, starts: RowStarts, pages: Tensor, wanted: slice, hidden: Tensor | None
) -> PageRows:
    """pages: int64 [batch, P]; wanted: of the tokens of each sequence's pages; hidden: int64, of
    the tokens that are wanted, counted through all sequences.
    """
    heads, tokens = 2 * format.num_kv_heads, pages.shape[1] * PAGE_TOKENS
    flat = pages.view(-1)
    vectors = flat * format.num_kv_heads + starts.vectors // PAGE_TOKENS
    params = flat * heads + starts.params // PAGE_TOKENS if format.quantized else None
    if hidden is not None:
        count = pages.shape[0] * (wanted.stop - wanted.start)
        hidden = hidden + torch.arange(0, heads * count, count, device=hidden.device).unsqueeze(1)
    return PageRows(
        vectors=vectors.view(-1),
        params=None if params is None else params.view(-1),
        tokens=tokens,
        wanted=wanted,
        hidden=None if hidden is None else hidden.view(-1),
    )
