"""Rows of random keys and values in a pool on the GPU, and exact attention over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat, pages_for
from awqkit_runtime.cache.pool import PagePool

#: Where a table has no page: to read there would be a fault.
_NOWHERE = 2**30


@dataclass(frozen=True, kw_only=True, eq=False)
class PagedRows:
    """page_table, lengths: as paged_decode takes them. slots: int64, of each row's tokens."""

    pool: PagePool
    page_table: Tensor
    lengths: Tensor
    slots: tuple[Tensor, ...]


def paged_rows(
    format: PageFormat,
    lengths: Sequence[int],
    seed: int,
    *,
    spare_pages: int = 3,
    key_mean: float = 0.0,
    value_mean: float = 0.0,
) -> PagedRows:
    """Pages in random order among spare ones; all that was not stored is no number."""
    generator = torch.Generator("cuda").manual_seed(seed)
    counts = [pages_for(length) for length in lengths]
    pool = poisoned_pool(format, sum(counts) + spare_pages, generator)
    order = torch.randperm(pool.num_pages, generator=generator, device="cuda")
    shape = (len(lengths), max(counts, default=0) + 2)
    table = torch.full(shape, _NOWHERE, dtype=torch.int32, device="cuda")
    slots = []
    for row, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        pages, order = order[:count], order[count:]
        table[row, :count] = pages
        position = torch.arange(length, device="cuda")
        slots.append(pages[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS)
    k, v = (
        random_vectors(sum(lengths), format, mean, generator) for mean in (key_mean, value_mean)
    )
    pool.append(0, k, v, torch.cat(slots))
    return PagedRows(
        pool=pool,
        page_table=table,
        lengths=torch.tensor(lengths, dtype=torch.int32, device="cuda"),
        slots=tuple(slots),
    )


def poisoned_pool(format: PageFormat, num_pages: int, generator: torch.Generator) -> PagePool:
    pool = PagePool(format, num_pages, torch.device("cuda"))
    pages = pool.layer(0)
    for stored in (pages.keys, pages.values, pages.params):
        if stored is not None and stored.dtype != torch.uint8:
            stored.fill_(torch.nan)
        elif stored is not None:
            stored.random_(0, 256, generator=generator)
    return pool


def random_vectors(
    tokens: int, format: PageFormat, mean: float, generator: torch.Generator
) -> Tensor:
    """Tokens and heads of different loudness around a mean that the dimensions of a head share."""
    shape = (tokens, format.num_kv_heads, format.head_dim)
    loudness = 0.2 + torch.rand(*shape[:2], 1, generator=generator, device="cuda")
    return (torch.randn(shape, generator=generator, device="cuda") * loudness + mean).bfloat16()


def exact_attention(
    rows: PagedRows, q: Tensor, *, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """float64 [rows, heads, head_dim], from the numbers that the pages hold."""
    out = torch.zeros(q.shape, dtype=torch.float64, device="cuda")
    for row, slots in enumerate(rows.slots):
        if not slots.numel():
            continue
        seen = slots if window is None else slots[-window:]
        k, v = (vectors.double() for vectors in rows.pool.gather(0, seen))
        groups = q[row].double().unflatten(0, (k.shape[1], -1))
        scores = torch.einsum("hgd,thd->hgt", groups, k) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        out[row] = torch.einsum("hgt,thd->hgd", scores.softmax(-1), v).flatten(0, 1)
    return out
