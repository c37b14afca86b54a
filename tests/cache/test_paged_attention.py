"""Mixed batches over pages: equal to dense attention, and independent of how they are split."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from awqkit_runtime.cache import key_places
from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat, pages_for
from awqkit_runtime.cache.paged_attention import PagedAttention, SequenceSpan
from awqkit_runtime.cache.pool import PagePool
from tests.cache.small_decoders import small_decoder

CONFIG = small_decoder(heads=6, kv_heads=2, head_dim=16, window=70)
PAGES = 64
POLICIES = (0, 8, 4, "k8v4")


class Sequence:
    """Random q, k, v of a whole text, for each layer, and the pages that hold it."""

    def __init__(self, length: int, pages: tuple[int, ...], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (CONFIG.num_layers, length)
        self.length = length
        self.pages = pages
        self.q = torch.randn(*shape, CONFIG.num_heads, CONFIG.head_dim, generator=generator)
        self.k, self.v = torch.randn(
            2, *shape, CONFIG.num_kv_heads, CONFIG.head_dim, generator=generator
        )
        self.out = torch.full_like(self.q, torch.nan)
        self.done = 0


def make_pool(policy: int | str) -> PagePool:
    pool = PagePool(PageFormat.for_policy(CONFIG, policy, torch.float32), PAGES, "cpu")
    for layer in map(pool.layer, range(CONFIG.num_layers)):
        # What an earlier owner left in a page must never be read.
        stores = (layer.keys, layer.values) if layer.params is None else (layer.params,)
        for store in stores:
            store.fill_(torch.nan)
    return pool


def make_sequences(lengths: list[int], rng: random.Random) -> list[Sequence]:
    free = rng.sample(range(PAGES), PAGES)
    return [
        Sequence(length, tuple(free.pop() for _ in range(pages_for(length))), seed)
        for seed, length in enumerate(lengths)
    ]


def run_step(pool: PagePool, chosen: list[tuple[Sequence, int]]) -> None:
    """Advance sequences by some tokens each, all in one batch."""
    spans, start = [], 0
    for sequence, count in chosen:
        spans.append(
            SequenceSpan(start=start, length=count, context=sequence.done, pages=sequence.pages)
        )
        start += count
    state = PagedAttention(pool, spans, config=CONFIG)
    for layer in range(CONFIG.num_layers):
        q, k, v = (
            torch.cat([getattr(s, name)[layer, s.done : s.done + n] for s, n in chosen])
            for name in "qkv"
        )
        out = state.attend(layer, q, k, v)
        for span, (sequence, count) in zip(spans, chosen, strict=True):
            rows = slice(span.start, span.start + count)
            sequence.out[layer, sequence.done : sequence.done + count] = out[rows]
    for sequence, count in chosen:
        sequence.done += count


def run_randomly(pool: PagePool, sequences: list[Sequence], rng: random.Random) -> None:
    """Prefill chunks and single tokens of all sequences, mixed at random, to the end."""
    while waiting := [s for s in sequences if s.done < s.length]:
        chosen = rng.sample(waiting, rng.randint(1, len(waiting)))
        counts = [rng.choice([1, 1, 2, 30, 64, 150]) for _ in chosen]
        run_step(
            pool, [(s, min(n, s.length - s.done)) for s, n in zip(chosen, counts, strict=True)]
        )


def dense(sequence: Sequence, layer: int, k: Tensor, v: Tensor) -> Tensor:
    """Attention over k and v [T, kv_heads, head_dim], by a full matrix in float64."""
    group = CONFIG.num_heads // CONFIG.num_kv_heads
    k, v = (x.double().repeat_interleave(group, dim=1).transpose(0, 1) for x in (k, v))
    q = sequence.q[layer].double().transpose(0, 1)
    distance = torch.arange(sequence.length).unsqueeze(1) - torch.arange(sequence.length)
    window = CONFIG.window(layer) or sequence.length
    hidden = (distance < 0) | (distance >= window)
    scores = (q @ k.transpose(1, 2) * CONFIG.head_dim**-0.5).masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_equals_dense_attention_over_the_stored_vectors(policy: int | str, seed: int) -> None:
    rng = random.Random(seed)
    pool = make_pool(policy)
    sequences = make_sequences([1, 63, 64, 65, 200, 333, rng.randint(2, 400)], rng)
    run_randomly(pool, sequences, rng)
    for sequence in sequences:
        slots = torch.tensor(
            [
                sequence.pages[p // PAGE_TOKENS] * PAGE_TOKENS + p % PAGE_TOKENS
                for p in range(sequence.length)
            ]
        )
        for layer in range(CONFIG.num_layers):
            expected = dense(sequence, layer, *pool.gather(layer, slots))
            torch.testing.assert_close(sequence.out[layer].double(), expected, rtol=1e-5, atol=1e-5)
            if policy == 0:
                exact = dense(sequence, layer, sequence.k[layer], sequence.v[layer])
                torch.testing.assert_close(expected, exact)


@pytest.mark.parametrize("policy", POLICIES)
def test_chunks_and_batches_do_not_change_results(policy: int | str) -> None:
    rng = random.Random(7)
    lengths = [150, 151, 40, 260]
    mixed = make_sequences(lengths, rng)
    run_randomly(make_pool(policy), mixed, rng)
    alone = make_sequences(lengths, rng)
    pool = make_pool(policy)
    for sequence in alone:
        run_step(pool, [(sequence, sequence.length)])
    for left, right in zip(mixed, alone, strict=True):
        torch.testing.assert_close(left.out, right.out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_whole_pages_give_the_bits_of_single_tokens(
    monkeypatch: pytest.MonkeyPatch, policy: int | str
) -> None:
    outs = []
    for fewest in (1, 1 << 30):
        monkeypatch.setattr(key_places, "_WHOLE_PAGES_FROM", fewest)
        monkeypatch.setattr(key_places, "_WHOLE_PAGES_SHARE", 1 << 30)
        rng = random.Random(10)
        sequences = make_sequences([150, 151, 40, 260, 261, 130], rng)
        run_randomly(make_pool(policy), sequences, rng)
        outs.append([sequence.out for sequence in sequences])
    for pages, tokens in zip(*outs, strict=True):
        assert torch.equal(pages, tokens)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_shared_prefix_is_read_from_the_same_pages(policy: int | str) -> None:
    rng = random.Random(8)
    pool = make_pool(policy)
    first, second = make_sequences([200, 200], rng)
    shared = 2 * PAGE_TOKENS
    second.k[:, :shared] = first.k[:, :shared]
    second.v[:, :shared] = first.v[:, :shared]
    run_step(pool, [(first, 200)])
    run_step(pool, [(second, 200)])
    expected = second.out.clone()
    second.done, second.pages = shared, first.pages[:2] + second.pages[2:]
    run_step(pool, [(second, 200 - shared)])
    torch.testing.assert_close(second.out, expected, rtol=1e-5, atol=1e-5)


def test_many_decodes_of_unequal_lengths_share_a_step() -> None:
    rng = random.Random(9)
    pool = make_pool(0)
    sequences = make_sequences([3, 300, 4, 90, 310, 64, 65, 128, 5], rng)
    for sequence in sequences:
        if sequence.length > 1:
            run_step(pool, [(sequence, sequence.length - 1)])
    run_step(pool, [(sequence, 1) for sequence in sequences])
    for sequence in sequences:
        for layer in range(CONFIG.num_layers):
            exact = dense(sequence, layer, sequence.k[layer], sequence.v[layer])
            torch.testing.assert_close(sequence.out[layer].double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_layers_share_what_says_where_their_keys_are(
    monkeypatch: pytest.MonkeyPatch, policy: int | str
) -> None:
    config = replace(CONFIG, windows=(None, None))
    pool = make_pool(policy)
    found: list[Tensor] = []
    rows = pool.rows
    monkeypatch.setattr(pool, "rows", lambda slots: found.append(slots) or rows(slots))
    spans = [SequenceSpan(start=row, length=1, context=0, pages=(row,)) for row in range(3)]
    state = PagedAttention(pool, spans, config=config)
    q, kv = torch.ones(3, config.num_heads, 16), torch.ones(3, config.num_kv_heads, 16)
    for layer in range(config.num_layers):
        state.attend(layer, q, kv, kv)
    assert len(found) == 2  # Of the new tokens, and of all.


def test_impossible_spans_are_refused() -> None:
    with pytest.raises(ValueError, match="1 pages cannot hold 65 tokens"):
        SequenceSpan(start=0, length=1, context=64, pages=(3,))
    with pytest.raises(ValueError, match="needs new tokens"):
        SequenceSpan(start=0, length=0, context=3, pages=(3,))
    spans = [SequenceSpan(start=start, length=2, context=0, pages=(start,)) for start in (0, 1)]
    with pytest.raises(ValueError, match="without gaps or overlaps"):
        PagedAttention(make_pool(0), spans, config=CONFIG)
