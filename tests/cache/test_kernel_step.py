"""Steps through kernels, for which torch stands in: as torch's own steps over the same pages."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from awqkit_runtime.cache import prompt_plan
from awqkit_runtime.cache.kernel_step import KernelStep
from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat, pages_for
from awqkit_runtime.cache.paged_attention import PagedAttention, SequenceSpan
from awqkit_runtime.cache.pool import PagePool
from tests.cache.kernel_stand_ins import use_stand_ins
from tests.cache.small_decoders import LAYERS, small_decoder

HEAD_DIM, HEADS, KV_HEADS, PAGES = 16, 6, 2, 64
CONFIG = small_decoder(heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, window=70)
POLICIES = (0, 8, "k8v4")


def random_frame() -> KeyFrame:
    generator = torch.Generator().manual_seed(2)
    mean, logs = torch.randn(2, LAYERS, KV_HEADS, HEAD_DIM, generator=generator)
    return KeyFrame(mean=mean, channel_scale=(logs / 2).exp(), rotated=True)


class Text:
    """Projections of a whole text, [layers, tokens, (heads + 2 · kv_heads) · head_dim]."""

    def __init__(self, length: int, pages: tuple[int, ...], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
        self.qkv = torch.randn(LAYERS, length, width, generator=generator)
        self.length = length
        self.pages = pages
        self.done = 0


def make_pool(policy: int | str, frame: KeyFrame) -> PagePool:
    form = PageFormat.for_policy(CONFIG, policy, torch.float32)
    pool = PagePool(form, PAGES, "cpu", key_frame=frame)
    for layer in range(LAYERS):  # What an earlier owner left in a page must never be read.
        store = pool.layer(layer).params
        for numbers in (pool.layer(layer).keys, pool.layer(layer).values):
            numbers.fill_(0 if store is not None else torch.nan)
        if store is not None:
            store.fill_(torch.nan)
    return pool


def make_texts(lengths: list[int], rng: random.Random) -> list[Text]:
    free = rng.sample(range(PAGES), PAGES)
    return [
        Text(length, tuple(free.pop() for _ in range(pages_for(length))), seed)
        for seed, length in enumerate(lengths)
    ]


def compare_step(in_kernels: PagePool, in_torch: PagePool, chosen: list[tuple[Text, int]]) -> None:
    spans, start = [], 0
    for text, count in chosen:
        spans.append(SequenceSpan(start=start, length=count, context=text.done, pages=text.pages))
        start += count
    step = KernelStep(in_kernels, spans, config=CONFIG)
    twin = PagedAttention(in_torch, spans, config=CONFIG)
    still = torch.zeros(start, HEAD_DIM)
    for layer in range(LAYERS):
        qkv = torch.cat([text.qkv[layer, text.done : text.done + n] for text, n in chosen])
        heads = qkv.unflatten(1, (-1, HEAD_DIM))
        q, k, v = heads.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
        expected = twin.attend(layer, q, k, v)
        found = step.attend(layer, qkv.clone(), still + 1, still, None)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for text, count in chosen:
        text.done += count


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short texts have squares, and are gathered in pieces."""
    use_stand_ins(monkeypatch)
    monkeypatch.setattr(prompt_plan, "SQUARE_TOKENS", 32)
    monkeypatch.setattr(prompt_plan, "BATCH_KEYS", 100)


@pytest.mark.parametrize("frame", [PLAIN_FRAME, random_frame()], ids=["plain", "framed"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_mixed_steps_equal_those_in_torch(
    policy: int | str, frame: KeyFrame, seed: int, small_limits: None
) -> None:
    rng = random.Random(seed)
    pools = make_pool(policy, frame), make_pool(policy, frame)
    texts = make_texts([1, 32, 64, 65, 230, 333, rng.randint(2, 400), 64], rng)
    while waiting := [text for text in texts if text.done < text.length]:
        chosen = rng.sample(waiting, rng.randint(1, len(waiting)))
        counts = [rng.choice([1, 1, 2, 32, 64, 150]) for _ in chosen]
        compare_step(
            *pools, [(t, min(n, t.length - t.done)) for t, n in zip(chosen, counts, strict=True)]
        )


def test_decodes_between_prompts_keep_their_rows(small_limits: None) -> None:
    rng = random.Random(5)
    pools = make_pool(8, PLAIN_FRAME), make_pool(8, PLAIN_FRAME)
    first, second, third, fourth = make_texts([100, 100, 100, 40], rng)
    compare_step(*pools, [(first, 99), (second, 50), (third, 99)])
    compare_step(*pools, [(first, 1), (second, 50), (third, 1), (fourth, 40)])


def test_steps_of_decodes_are_one_launch(
    small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from awqkit_runtime.cache import page_kernels

    rng = random.Random(6)
    pools = make_pool(0, PLAIN_FRAME), make_pool(0, PLAIN_FRAME)
    texts = make_texts([100, 3, 70], rng)
    compare_step(*pools, [(text, text.length - 1) for text in texts])
    launches: list[Tensor] = []
    launch = page_kernels.paged_decode
    monkeypatch.setattr(
        page_kernels, "paged_decode", lambda q, *a, **k: launches.append(q) or launch(q, *a, **k)
    )
    compare_step(*pools, [(text, 1) for text in texts])
    assert [len(q) for q in launches] == [3] * LAYERS


def test_a_copy_follows_what_attention_reads_ahead_of_its_predecessors(
    small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from awqkit_runtime.cache import int_arrays, kernel_step, page_kernels

    order: list[str] = []
    for module, name in (
        *((int_arrays, "send"), (kernel_step, "send")),
        *((page_kernels, "share_rows"), (page_kernels, "paged_decode")),
    ):
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, real=real, name=name, **k: order.append(name) or real(*a, **k)
        )
    pools = make_pool(0, PLAIN_FRAME), make_pool(0, PLAIN_FRAME)
    compare_step(*pools, [(text, 1) for text in make_texts([1, 1], random.Random(8))])
    windows = {CONFIG.window(layer) for layer in range(LAYERS)}
    before = ["send", *["share_rows"] * len(windows), "send"]
    assert order == [*before, *["paged_decode"] * LAYERS]


def test_new_tokens_go_where_their_pages_are(small_limits: None) -> None:
    pool = make_pool(0, PLAIN_FRAME)
    (text,) = make_texts([200], random.Random(7))
    span = SequenceSpan(start=0, length=120, context=70, pages=text.pages)
    slots = KernelStep(pool, [span], config=CONFIG)._slots
    assert slots.tolist() == span.slots(70, 190)
    assert slots.max() < PAGES * PAGE_TOKENS
