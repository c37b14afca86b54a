"""Decodes that are read from tensors: as those of spans, whatever the tensors hold beside them."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from awqkit_runtime.cache.decode_attention import DecodeAttention
from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat, pages_for
from awqkit_runtime.cache.paged_attention import PagedAttention, SequenceSpan
from awqkit_runtime.cache.pool import PagePool
from tests.cache.kernel_stand_ins import use_stand_ins
from tests.cache.small_decoders import small_decoder

CONFIG = small_decoder(heads=6, kv_heads=2, head_dim=16, window=70)
PAGES = 32
POLICIES = (0, 8, 4, "k8v4")
#: Tokens that the pages hold; None: an idle row.
CONTEXTS = (0, None, 63, 64, 200, 5, None, 301)
WIDTH = 8


def make_pool(policy: int | str) -> PagePool:
    """With something in every page."""
    pool = PagePool(PageFormat.for_policy(CONFIG, policy, torch.float32), PAGES, "cpu")
    generator = torch.Generator().manual_seed(1)
    slots = torch.arange(PAGES * PAGE_TOKENS)
    for layer in range(CONFIG.num_layers):
        pool.append(layer, *torch.randn(2, len(slots), 2, 16, generator=generator), slots)
    return pool


def make_pages(seed: int) -> list[tuple[int, ...]]:
    free = random.Random(seed).sample(range(PAGES), PAGES)
    return [
        tuple(free.pop() for _ in range(0 if context is None else pages_for(context + 1)))
        for context in CONTEXTS
    ]


def step_tensors(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of every row for each layer."""
    generator = torch.Generator().manual_seed(seed)
    shape = (CONFIG.num_layers, len(CONTEXTS))
    q = torch.randn(*shape, CONFIG.num_heads, 16, generator=generator)
    k, v = torch.randn(2, *shape, CONFIG.num_kv_heads, 16, generator=generator)
    return q, k, v


def fill_tables(page_table: Tensor, positions: Tensor, pages: list[tuple[int, ...]]) -> None:
    page_table.fill_(-7)  # What no token needs is not read.
    for row, context in enumerate(CONTEXTS):
        page_table[row, : len(pages[row])] = torch.tensor(pages[row])
        positions[row] = -1 if context is None else context


def by_spans(
    pool: PagePool, pages: list[tuple[int, ...]], q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """The same step without its idle rows; these stay zero."""
    rows = [row for row, context in enumerate(CONTEXTS) if context is not None]
    spans = [
        SequenceSpan(start=start, length=1, context=CONTEXTS[row] or 0, pages=pages[row])
        for start, row in enumerate(rows)
    ]
    state = PagedAttention(pool, spans, config=CONFIG)
    out = torch.zeros_like(q)
    for layer in range(CONFIG.num_layers):
        out[layer, rows] = state.attend(layer, q[layer, rows], k[layer, rows], v[layer, rows])
    return out


@pytest.mark.parametrize("policy", POLICIES)
def test_equals_spans_of_one_step_after_another_in_the_same_tensors(policy: int | str) -> None:
    pool, other = make_pool(policy), make_pool(policy)
    page_table = torch.empty(len(CONTEXTS), WIDTH, dtype=torch.int32)
    positions = torch.empty(len(CONTEXTS), dtype=torch.int64)
    for seed in (3, 4):
        pages = make_pages(seed)
        fill_tables(page_table, positions, pages)
        state = DecodeAttention(pool, page_table, positions, config=CONFIG)
        q, k, v = step_tensors(seed)
        found = torch.stack(
            [state.attend(layer, q[layer], k[layer], v[layer]) for layer in range(2)]
        )
        assert torch.equal(found, by_spans(other, pages, q, k, v))
        everywhere = torch.arange(PAGES * PAGE_TOKENS)
        for layer in range(CONFIG.num_layers):
            for ours, theirs in zip(
                pool.gather(layer, everywhere), other.gather(layer, everywhere), strict=True
            ):
                assert torch.equal(ours, theirs)


def test_a_step_of_idle_rows_stores_nothing() -> None:
    pool = make_pool(0)
    before = pool.layer(0).keys.clone()
    state = DecodeAttention(
        pool,
        torch.zeros(3, 1, dtype=torch.int32),
        torch.full((3,), -1),
        config=CONFIG,
    )
    q, k, v = (x[0, :3] for x in step_tensors(5))
    assert not state.attend(0, q, k, v).any()
    assert torch.equal(pool.layer(0).keys, before)


@pytest.mark.parametrize("policy", POLICIES)
def test_so_does_what_it_asks_of_kernels(
    policy: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_stand_ins(monkeypatch)
    pool, other = make_pool(policy), make_pool(policy)
    pages = make_pages(seed=5)
    page_table = torch.empty(len(CONTEXTS), WIDTH, dtype=torch.int32)
    positions = torch.empty(len(CONTEXTS), dtype=torch.int64)
    fill_tables(page_table, positions, pages)
    attend_projected = DecodeAttention(pool, page_table, positions, config=CONFIG).attend_projected
    assert attend_projected is not None
    q, k, v = step_tensors(seed=5)
    qkv = torch.cat((q, k, v), dim=2).flatten(2)
    still = torch.zeros(len(CONTEXTS), 16)
    found = torch.stack(
        [attend_projected(layer, qkv[layer], still + 1, still, None) for layer in range(2)]
    )
    torch.testing.assert_close(found, by_spans(other, pages, q, k, v), rtol=1e-4, atol=1e-5)
