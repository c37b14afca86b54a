"""Tokens that attend one by one get the bits that they get alone, however their keys are read."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from awqkit_runtime.cache import key_pieces, page_access
from awqkit_runtime.cache.key_frame import PLAIN_FRAME
from awqkit_runtime.cache.key_pieces import KeyPieces, KeyRun, joint_reads
from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat, pages_for
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.cache.steady_attention import SteadyAttention, TokenPlace
from awqkit_runtime.kernels.attention import AttentionBlock, attend
from tests.cache.small_decoders import LAYERS, small_decoder
from tests.engine.fakes import random_frame

HEADS, KV_HEADS, HEAD_DIM, WINDOW = 6, 2, 16, 70
ROWS, PAGES = 16, 40
POLICIES = (0, 8, 4, "k8v4")
#: Positions of the step's tokens: the first of a page, the last, behind the window, before it.
POSITIONS = (0, 63, 64, 5, 69, 70, 200, 301, 130)


def make_pool(policy: int | str, dtype: torch.dtype = torch.float32) -> PagePool:
    """Full of random vectors."""
    config = small_decoder(heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, window=WINDOW)
    frame = random_frame(config) if policy == 4 else PLAIN_FRAME
    pool = PagePool(PageFormat.for_policy(config, policy, dtype), PAGES, "cpu", key_frame=frame)
    generator = torch.Generator().manual_seed(1)
    slots = torch.arange(PAGES * PAGE_TOKENS)
    for layer in range(LAYERS):
        k, v = torch.randn(2, len(slots), KV_HEADS, HEAD_DIM, generator=generator)
        pool.append(layer, k, v, slots)
    return pool


def make_places() -> list[TokenPlace]:
    rng = random.Random(3)
    free = rng.sample(range(PAGES), PAGES)
    rows = rng.sample(range(ROWS), len(POSITIONS))
    return [
        TokenPlace(
            row=row,
            position=position,
            pages=tuple(free.pop() for _ in range(pages_for(position + 1))),
        )
        for row, position in zip(rows, POSITIONS, strict=True)
    ]


def slots_of(place: TokenPlace, first: int) -> Tensor:
    positions = torch.arange(first, place.position + 1)
    return (
        torch.tensor(place.pages)[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS
    )


def attend_alone(
    pool: PagePool, layer: int, q: Tensor, place: TokenPlace, softcap: float | None
) -> Tensor:
    """q [heads, head_dim] → the same, over keys that are read for it alone."""
    first = max(0, place.position - WINDOW + 1) if layer == 1 else 0
    k, v = pool.gather(layer, slots_of(place, first))
    block = AttentionBlock(queries=slice(0, 1), keys=slice(0, len(k)), visible=None)
    scale = HEAD_DIM**-0.5
    out = attend(q[None, None], k[None], v[None], [block], scale=scale, softcap=softcap)
    return out[0, 0]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("joint_keys", [1, 250, 4096])
def test_tokens_get_the_bits_that_they_get_alone(
    monkeypatch: pytest.MonkeyPatch, policy: int | str, softcap: float | None, joint_keys: int
) -> None:
    monkeypatch.setattr(key_pieces, "JOINT_KEYS", joint_keys)
    config = small_decoder(
        heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, window=WINDOW, softcap=softcap
    )
    pool, places = make_pool(policy), make_places()
    state = SteadyAttention(pool, places, rows=ROWS, config=config)
    generator = torch.Generator().manual_seed(2)
    for layer in range(LAYERS):
        q = torch.randn(ROWS, HEADS, HEAD_DIM, generator=generator)
        k, v = torch.randn(2, ROWS, KV_HEADS, HEAD_DIM, generator=generator)
        out = state.attend(layer, q, k, v)
        queries = pool.queries(layer, q)
        for place in places:
            alone = attend_alone(pool, layer, queries[place.row], place, softcap)
            assert torch.equal(out[place.row], alone)
            assert_stored(pool, layer, k[place.row], v[place.row], place)
        idle = sorted(set(range(ROWS)) - {place.row for place in places})
        assert idle and not out[idle].any()


@pytest.mark.parametrize("tokens", [1, 5, ROWS])
def test_as_many_vectors_are_stored_whatever_there_is_of_tokens(
    monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """The sums that fit codes of 4 bits have one shape."""
    shapes = []
    quantize = page_access.quantize_vectors

    def noting(vectors: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        shapes.append(vectors.shape)
        return quantize(vectors, bits)

    config = small_decoder(heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, window=WINDOW)
    pool = make_pool(4)
    places = [TokenPlace(row=row, position=9, pages=(row,)) for row in range(tokens)]
    state = SteadyAttention(pool, places, rows=ROWS, config=config)
    monkeypatch.setattr(page_access, "quantize_vectors", noting)
    kv = torch.ones(ROWS, KV_HEADS, HEAD_DIM)
    state.attend(0, torch.ones(ROWS, HEADS, HEAD_DIM), kv, kv)
    assert shapes == [(2 * KV_HEADS * ROWS, HEAD_DIM)]


def assert_stored(pool: PagePool, layer: int, k: Tensor, v: Tensor, place: TokenPlace) -> None:
    other = PagePool(pool.format, 1, "cpu", key_frame=pool.key_frame)
    slot = torch.zeros(1, dtype=torch.int64)
    other.append(layer, k[None], v[None], slot)
    expected = other.gather(layer, slot)
    found = pool.gather(layer, slots_of(place, place.position))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_are_as_well_aligned_as_memory_of_their_own(dtype: torch.dtype) -> None:
    pool = make_pool(0, dtype)
    runs = [place.keys(WINDOW) for place in make_places()]
    for pieces in KeyPieces(pool, runs).read(0, torch.float32):
        for piece, run in zip(pieces, runs, strict=True):
            assert piece.shape == (1, KV_HEADS, run.keys, HEAD_DIM) and piece.is_contiguous()
            assert piece.data_ptr() % 64 == 0


def test_long_runs_are_read_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_pieces, "JOINT_KEYS", 100)

    def joint(counts: Sequence[int]) -> list[slice]:
        runs = [KeyRun(pages=(0, 1, 2, 3), first=0, stop=count) for count in counts]
        return joint_reads(runs)

    assert joint([40, 60]) == [slice(0, 2)]
    assert joint([40, 61, 200, 3, 4]) == [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 5)]
