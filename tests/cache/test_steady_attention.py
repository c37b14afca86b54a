"""Tokens that attend one by one get the bits that they get alone, however their keys are read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig
from awqkit_runtime.cache import key_pieces, page_access
from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.key_pieces import KeyPieces, KeyRun, joint_reads
from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat, pages_for
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.cache.steady_attention import SteadyAttention, TokenPlace
from awqkit_runtime.kernels.attention import AttentionBlock, attend
from tests.cache.small_decoders import LAYERS, small_decoder
from tests.engine.fakes import random_frame

WINDOW, ROWS, PAGES = 70, 16, 40
CONFIG = small_decoder(heads=6, kv_heads=2, head_dim=16, window=WINDOW)
POLICIES = (0, 8, 4, "k8v4")
#: Positions of the step's tokens: the first of a page, the last, behind the window, before it.
POSITIONS = (0, 63, 64, 5, 69, 70, 200, 301, 130)
#: With what models compute in there.
DEVICES = [
    ("cpu", torch.float32),
    pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
    pytest.param("cuda", torch.float32, marks=pytest.mark.gpu),
]


def make_pool(
    config: DecoderConfig, policy: int | str, dtype: torch.dtype, device: str = "cpu"
) -> PagePool:
    """Full of random vectors."""
    frame = frame_on(device, config) if policy == 4 else PLAIN_FRAME
    form = PageFormat.for_policy(config, policy, dtype)
    pool = PagePool(form, PAGES, device, key_frame=frame)
    slots = torch.arange(PAGES * PAGE_TOKENS, device=device)
    for layer in range(LAYERS):
        k, v = random_heads(pool, 2 * config.num_kv_heads, len(slots)).chunk(2, dim=1)
        pool.append(layer, k, v, slots)
    return pool


def frame_on(device: str, config: DecoderConfig) -> KeyFrame:
    frame = random_frame(config)
    assert frame.mean is not None and frame.channel_scale is not None
    return replace(frame, mean=frame.mean.to(device), channel_scale=frame.channel_scale.to(device))


def random_heads(pool: PagePool, heads: int, tokens: int = ROWS) -> Tensor:
    """[tokens, heads, head_dim]"""
    generator = torch.Generator().manual_seed(heads)
    vectors = torch.randn(tokens, heads, pool.format.head_dim, generator=generator)
    return vectors.to(pool.device, pool.format.dtype)


def make_places(positions: Sequence[int] = POSITIONS) -> list[TokenPlace]:
    rng = random.Random(3)
    free = rng.sample(range(PAGES), PAGES)
    return [
        TokenPlace(
            row=row,
            position=position,
            pages=tuple(free.pop() for _ in range(pages_for(position + 1))),
        )
        for row, position in zip(rng.sample(range(ROWS), len(positions)), positions, strict=True)
    ]


def slots_of(pool: PagePool, place: TokenPlace, first: int) -> Tensor:
    positions = torch.arange(first, place.position + 1)
    pages = torch.tensor(place.pages)[positions // PAGE_TOKENS]
    return (pages * PAGE_TOKENS + positions % PAGE_TOKENS).to(pool.device)


def attend_alone(
    pool: PagePool, config: DecoderConfig, layer: int, q: Tensor, place: TokenPlace
) -> Tensor:
    """q [heads, head_dim] → the same, over keys that are read for it alone."""
    first = 0 if config.window(layer) is None else max(0, place.position - WINDOW + 1)
    k, v = pool.gather(layer, slots_of(pool, place, first))
    block = AttentionBlock(queries=slice(0, 1), keys=slice(0, len(k)), visible=None)
    out = attend(
        q[None, None],
        k[None],
        v[None],
        [block],
        scale=config.softmax_scale,
        softcap=config.attention_softcap,
    )
    return out[0, 0]


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("joint_keys", [1, 250, 4096])
def test_tokens_get_the_bits_that_they_get_alone(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    dtype: torch.dtype,
    policy: int | str,
    softcap: float | None,
    joint_keys: int,
) -> None:
    monkeypatch.setattr(key_pieces, "JOINT_KEYS", joint_keys)
    config = replace(CONFIG, attention_softcap=softcap)
    pool, places = make_pool(config, policy, dtype, device), make_places()
    state = SteadyAttention(pool, places, rows=ROWS, config=config)
    for layer in range(LAYERS):
        q = random_heads(pool, config.num_heads)
        out = state.attend(layer, q, *random_heads(pool, 4).chunk(2, dim=1))
        queries = pool.queries(layer, q)
        for place in places:
            alone = attend_alone(pool, config, layer, queries[place.row], place)
            assert torch.equal(out[place.row], alone)
        idle = sorted(set(range(ROWS)) - {place.row for place in places})
        assert idle and not out[idle].any()


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_token_alone_is_stored_as_in_a_batch(
    device: str, dtype: torch.dtype, policy: int | str
) -> None:
    """Also where a GPU would add up a head's numbers in another order for few tokens."""
    config = replace(CONFIG, head_dim=128)
    together, alone = (make_pool(config, policy, dtype, device) for _ in range(2))
    k, v = 3 * random_heads(together, 2), random_heads(together, 4)[:, :2]
    places, q = make_places([9] * ROWS), random_heads(together, config.num_heads)
    SteadyAttention(together, places, rows=ROWS, config=config).attend(0, q, k, v)
    for place in places:
        SteadyAttention(alone, [place], rows=ROWS, config=config).attend(0, q, k, v)
        slots = slots_of(together, place, 9)
        stored = zip(together.gather(0, slots), alone.gather(0, slots), strict=True)
        assert all(torch.equal(*pair) for pair in stored)
        if policy == 0:
            assert torch.equal(together.gather(0, slots)[0][0], k[place.row])


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

    pool = make_pool(CONFIG, 4, torch.float32)
    state = SteadyAttention(pool, make_places([9] * tokens), rows=ROWS, config=CONFIG)
    monkeypatch.setattr(page_access, "quantize_vectors", noting)
    kv = random_heads(pool, CONFIG.num_kv_heads)
    state.attend(0, random_heads(pool, CONFIG.num_heads), kv, kv)
    assert shapes == [(2 * CONFIG.num_kv_heads * ROWS, CONFIG.head_dim)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_are_as_well_aligned_as_memory_of_their_own(dtype: torch.dtype) -> None:
    config = replace(CONFIG, num_kv_heads=3, head_dim=6)
    pool = make_pool(config, 0, dtype)
    runs = [place.keys(WINDOW) for place in make_places()]
    for pieces in KeyPieces(pool, runs).read(0, dtype):
        for piece, run in zip(pieces, runs, strict=True):
            assert piece.shape == (1, 3, run.keys, 6)
            assert piece.is_contiguous() and piece.data_ptr() % 64 == 0


def test_long_runs_are_read_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_pieces, "JOINT_KEYS", 100)

    def joint(counts: Sequence[int]) -> list[slice]:
        runs = [KeyRun(pages=(0, 1, 2, 3), first=0, stop=count) for count in counts]
        return joint_reads(runs)

    assert joint([40, 60]) == [slice(0, 2)]
    assert joint([40, 61, 200, 3, 4]) == [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 5)]
