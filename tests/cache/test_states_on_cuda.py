"""Steps through the CUDA kernels: as attention in float64 over what the pages hold."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig
from awqkit_runtime.cache import prompt_plan
from awqkit_runtime.cache.decode_attention import DecodeAttention
from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat, pages_for
from awqkit_runtime.cache.paged_attention import PagedAttention, SequenceSpan
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.kernels.rotary import HeadNorms
from tests.cache.small_decoders import LAYERS, small_decoder
from tests.kernels.cuda_random import random_bf16, random_fp32

pytestmark = pytest.mark.gpu

HEADS, KV_HEADS, PAGES = 8, 2, 80
POLICIES = (0, 8, 4, "k8v4")
#: Of outputs to those in float64, as vectors: BF16 keeps eight bits.
ERROR = 8e-3


def make_config(head_dim: int, softcap: float | None = None) -> DecoderConfig:
    """The second layer has a window."""
    return small_decoder(
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=head_dim,
        window=300,
        max_length=8192,
        softcap=softcap,
    )


def make_pool(config: DecoderConfig, policy: int | str) -> PagePool:
    """Whatever an earlier owner left in a page must not be read. 4-bit keys have a frame."""
    frame = PLAIN_FRAME
    if policy == 4:
        shape = (LAYERS, KV_HEADS, config.head_dim)
        scale = (random_fp32(*shape, seed=2) / 2).exp()
        frame = KeyFrame(mean=random_fp32(*shape, seed=1), channel_scale=scale, rotated=True)
    form = PageFormat.for_policy(config, policy, torch.bfloat16)
    pool = PagePool(form, PAGES, "cuda", key_frame=frame)
    for layer in range(LAYERS):
        pages = pool.layer(layer)
        for numbers in (pages.keys, pages.values) if pages.params is None else (pages.params,):
            numbers.fill_(torch.nan)
    return pool


class Text:
    """Projections of a whole text, [layers, tokens, width], and its pages."""

    def __init__(self, config: DecoderConfig, length: int, pages: tuple[int, ...]) -> None:
        width = config.q_size + 2 * config.kv_size
        self.qkv = random_bf16(LAYERS, length, width, seed=length)
        self.length = length
        self.pages = pages
        self.done = 0


def make_texts(config: DecoderConfig, lengths: list[int], rng: random.Random) -> list[Text]:
    free = rng.sample(range(PAGES), PAGES)
    return [
        Text(config, length, tuple(free.pop() for _ in range(pages_for(length))))
        for length in lengths
    ]


def angles(config: DecoderConfig, positions: list[int]) -> tuple[Tensor, Tensor]:
    steps = torch.arange(config.head_dim // 2, device="cuda") / config.head_dim
    turns = torch.tensor(positions, device="cuda").unsqueeze(1) * (-8 * steps).exp()
    return turns.cos().repeat(1, 2), turns.sin().repeat(1, 2)


def make_norms(config: DecoderConfig) -> HeadNorms:
    query, key = (1 + random_bf16(config.head_dim, seed=i, scale=0.1) for i in (1, 2))
    return HeadNorms(query=query, key=key, eps=1e-6, unit_offset=False)


def exact(
    config: DecoderConfig, layer: int, q: Tensor, pool: PagePool, text: Text, first: int
) -> Tensor:
    """Of queries in the pool's frame, [T, heads, head_dim], at positions from first on."""
    positions = torch.arange(first + len(q), device="cuda")
    pages = torch.tensor(text.pages, device="cuda")
    slots = pages[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS
    k, v = (
        x.double().repeat_interleave(HEADS // KV_HEADS, dim=1).transpose(0, 1)
        for x in pool.gather(layer, slots)
    )
    scores = q.double().transpose(0, 1) @ k.transpose(1, 2) * config.softmax_scale
    if config.attention_softcap is not None:
        scores = config.attention_softcap * (scores / config.attention_softcap).tanh()
    distance = positions[first:].unsqueeze(1) - positions
    hidden = (distance < 0) | (distance >= (config.window(layer) or 10**6))
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(0, 1)


def assert_close(out: Tensor, expected: Tensor) -> None:
    assert out.dtype == torch.bfloat16
    assert float((out.double() - expected).norm() / expected.norm()) <= ERROR


def run_step(config: DecoderConfig, pool: PagePool, chosen: list[tuple[Text, int]]) -> None:
    spans, positions, start = [], [], 0
    for text, count in chosen:
        spans.append(SequenceSpan(start=start, length=count, context=text.done, pages=text.pages))
        positions += range(text.done, text.done + count)
        start += count
    state = PagedAttention(pool, spans, config=config)
    attend_projected = state.attend_projected
    assert attend_projected is not None
    for layer in range(LAYERS):
        qkv = torch.cat([text.qkv[layer, text.done : text.done + n] for text, n in chosen])
        out = attend_projected(layer, qkv, *angles(config, positions), make_norms(config))
        q = qkv[:, : config.q_size].unflatten(1, (HEADS, config.head_dim))
        assert out.shape == q.shape
        for span, (text, count) in zip(spans, chosen, strict=True):
            rows = slice(span.start, span.start + count)
            assert_close(out[rows], exact(config, layer, q[rows], pool, text, text.done))
    for text, count in chosen:
        text.done += count


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_mixed_steps_attend_over_what_the_pages_hold(head_dim: int, policy: int | str) -> None:
    rng = random.Random(head_dim)
    config = make_config(head_dim)
    pool = make_pool(config, policy)
    square = prompt_plan.SQUARE_TOKENS
    texts = make_texts(config, [square + 7, 130, 64, 1], rng)
    run_step(config, pool, [(text, text.length) for text in texts[:1]])
    run_step(config, pool, [(texts[1], 65), (texts[2], 63), (texts[3], 1)])
    run_step(config, pool, [(texts[1], 64), (texts[2], 1)])
    more = make_texts(config, [200, 200], rng)
    run_step(config, pool, [(more[0], 150), (texts[1], 1), (more[1], 150)])
    run_step(config, pool, [(more[0], 1), (more[1], 50)])


def test_equal_prompts_share_a_square() -> None:
    config = make_config(128)
    pool = make_pool(config, 0)
    texts = make_texts(config, [prompt_plan.SQUARE_TOKENS] * 2, random.Random(1))
    run_step(config, pool, [(text, text.length) for text in texts])


@pytest.mark.parametrize("policy", [0, 8])
def test_long_contexts_are_read_piece_by_piece(
    policy: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_plan, "BATCH_KEYS", 256)
    config = make_config(128)
    pool = make_pool(config, policy)
    (text,) = make_texts(config, [1500], random.Random(2))
    for count in (700, 100, 400, 300):
        run_step(config, pool, [(text, count)])


def test_soft_caps_are_left_to_torch_but_in_decodes() -> None:
    config = make_config(128, softcap=5.0)
    pool = make_pool(config, 8)
    pages = tuple(range(4))
    prompt = SequenceSpan(start=0, length=100, context=0, pages=pages)
    assert PagedAttention(pool, [prompt], config=config).attend_projected is None
    text = Text(config, 101, pages)
    state = PagedAttention(pool, [prompt], config=config)
    for layer in range(LAYERS):
        heads = text.qkv[layer, :100].unflatten(1, (-1, 128))
        state.attend(layer, *heads.split((HEADS, KV_HEADS, KV_HEADS), dim=1))
    text.done = 100
    run_step(config, pool, [(text, 1)])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_captured_step_of_decodes_follows_its_tensors(policy: int | str) -> None:
    config = make_config(128)
    pool = make_pool(config, policy)
    rng = random.Random(3)
    texts = make_texts(config, [64, 200, 333], rng)
    run_step(config, pool, [(text, text.length - 3) for text in texts])
    rows, width = len(texts) + 1, 8
    page_table = torch.full((rows, width), 10**6, dtype=torch.int32, device="cuda")
    positions = torch.full((rows,), -1, device="cuda")
    qkv = torch.zeros(LAYERS, rows, texts[0].qkv.shape[-1], dtype=torch.bfloat16, device="cuda")
    # Angles are the same in every step, as if all texts stood still: the pages do not mind.
    cos, sin = angles(config, [5] * rows)
    outs: list[Tensor] = []

    def compute() -> None:
        state = DecodeAttention(pool, page_table, positions, config=config)
        assert state.attend_projected is not None
        outs[:] = [
            state.attend_projected(layer, qkv[layer], cos, sin, None) for layer in range(LAYERS)
        ]

    compute()  # Of idle rows alone: loads what a capture may not.
    assert not any(out.any() for out in outs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compute()
    for _ in range(3):
        order = rng.sample(range(rows), len(texts))  # One row is idle, another one each time.
        positions.fill_(-1)
        for row, text in zip(order, texts, strict=True):
            page_table[row, : len(text.pages)] = torch.tensor(text.pages, dtype=torch.int32)
            positions[row] = text.done
            qkv[:, row] = text.qkv[:, text.done]
        graph.replay()
        for layer, out in enumerate(outs):
            q = qkv[layer, :, : config.q_size].unflatten(1, (HEADS, 128))
            for row, text in zip(order, texts, strict=True):
                one = slice(row, row + 1)
                assert_close(out[one], exact(config, layer, q[one], pool, text, text.done))
            idle = (set(range(rows)) - set(order)).pop()
            assert not out[idle].any()
        for text in texts:
            text.done += 1
