"""Attention in another frame is the same attention, and loses less where keys have few bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig
from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame, frame_bytes
from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.cache.paged_attention import PagedAttention, SequenceSpan
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.cache.steady_attention import SteadyAttention, TokenPlace
from tests.cache.small_decoders import LAYERS, small_decoder

HEAD_SIZES = (64, 80, 96, 128, 256)
TOKENS = 100
HEADS, KV_HEADS = 6, 2
#: Pages in no order.
PAGES = (3, 0, 2)[: pages_for(TOKENS)]


def config(head_dim: int, *, softcap: float | None = None) -> DecoderConfig:
    """The second layer has a window."""
    return small_decoder(
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=head_dim,
        window=30,
        softcap=softcap,
    )


def frames(head_dim: int) -> dict[str, KeyFrame]:
    generator = torch.Generator().manual_seed(head_dim)
    shape = (LAYERS, KV_HEADS, head_dim)
    mean = 3 * torch.randn(shape, generator=generator)
    scale = torch.randn(shape, generator=generator).exp()
    return {
        "mean": KeyFrame(mean=mean),
        "rotation": KeyFrame(rotated=True),
        "scales": KeyFrame(channel_scale=scale),
        "all": KeyFrame(mean=mean, channel_scale=scale, rotated=True),
    }


FRAMES = tuple(frames(64))


class Inputs:
    """q, k and v of every token, [T, heads, head_dim] each."""

    def __init__(self, head_dim: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.q = torch.randn(TOKENS, HEADS, head_dim, generator=generator)
        self.k, self.v = torch.randn(2, TOKENS, KV_HEADS, head_dim, generator=generator)


def make_pool(form: DecoderConfig, policy: int | str, frame: KeyFrame) -> PagePool:
    """Under "k4v8" only keys lose anything to speak of."""
    page_format = PageFormat.for_policy(form, 8 if policy == "k4v8" else policy, torch.float32)
    if policy == "k4v8":
        page_format = replace(page_format, k_bits=4)
    return PagePool(page_format, max(PAGES) + 1, "cpu", key_frame=frame)


def attended(
    form: DecoderConfig,
    inputs: Inputs,
    frame: KeyFrame,
    *,
    policy: int | str = 0,
    chunk: int = TOKENS,
) -> Tensor:
    """Of both layers, [layers, T, heads, head_dim]: a prompt in chunks."""
    pool = make_pool(form, policy, frame)
    parts = []
    for start in range(0, TOKENS, chunk):
        rows = slice(start, min(start + chunk, TOKENS))
        span = SequenceSpan(start=0, length=rows.stop - start, context=start, pages=PAGES)
        state = PagedAttention(pool, [span], config=form)
        parts.append(
            torch.stack(
                [
                    state.attend(layer, inputs.q[rows], inputs.k[rows], inputs.v[rows])
                    for layer in range(LAYERS)
                ]
            )
        )
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("head_dim", HEAD_SIZES)
def test_unquantized_attention_stays_the_same(head_dim: int, name: str) -> None:
    form, inputs = config(head_dim), Inputs(head_dim)
    expected = attended(form, inputs, PLAIN_FRAME)
    found = attended(form, inputs, frames(head_dim)[name], chunk=33)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FRAMES)
def test_token_by_token_it_does_too(name: str) -> None:
    form, inputs = config(64), Inputs(64)
    expected = attended(form, inputs, PLAIN_FRAME)
    pool = make_pool(form, 0, frames(64)[name])
    for position in range(TOKENS):
        place = TokenPlace(row=0, position=position, pages=PAGES)
        state = SteadyAttention(pool, [place], rows=1, config=form)
        row = slice(position, position + 1)
        for layer in range(LAYERS):
            out = state.attend(layer, inputs.q[row], inputs.k[row], inputs.v[row])
            torch.testing.assert_close(out, expected[layer, row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["rotation", "scales"])
def test_soft_caps_do_not_see_rotation_and_scales(name: str) -> None:
    form, inputs = config(64, softcap=2.0), Inputs(64)
    expected = attended(form, inputs, PLAIN_FRAME)
    found = attended(form, inputs, frames(64)[name])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_soft_caps_do_see_a_mean_key() -> None:
    form, inputs = config(64, softcap=2.0), Inputs(64)
    plain = attended(form, inputs, PLAIN_FRAME)
    assert (attended(form, inputs, frames(64)["mean"]) - plain).abs().max() > 0.1


@pytest.mark.parametrize("policy", [4, "k8v4", 8])
def test_stored_bits_do_not_depend_on_chunks(policy: int | str) -> None:
    form, inputs, frame = config(80), Inputs(80), frames(80)["all"]
    slots = torch.tensor([page * 64 + offset for page in PAGES for offset in range(64)][:TOKENS])
    stored = []
    for chunk in (TOKENS, 33, 1):
        pool = make_pool(form, policy, frame)
        for rows in torch.arange(TOKENS).split(chunk):
            for layer in range(LAYERS):
                pool.append(layer, inputs.k[rows], inputs.v[rows], slots[rows])
        stored.append([pool.gather(layer, slots) for layer in range(LAYERS)])
    for other in stored[1:]:
        for (k, v), (first_k, first_v) in zip(other, stored[0], strict=True):
            assert torch.equal(k, first_k) and torch.equal(v, first_v)


def error_of_4_bit_keys(head_dim: int, inputs: Inputs, frame: KeyFrame) -> float:
    form = config(head_dim)
    exact = attended(form, inputs, PLAIN_FRAME)
    return float((attended(form, inputs, frame, policy="k4v8") - exact).square().mean())


@pytest.mark.parametrize("head_dim", HEAD_SIZES)
def test_a_mean_key_takes_what_is_common_to_all_keys(head_dim: int) -> None:
    inputs = Inputs(head_dim)
    common = torch.zeros(LAYERS, KV_HEADS, head_dim)
    common[..., 5], common[..., 11] = 40.0, -25.0
    inputs.k += common[0]
    plain = error_of_4_bit_keys(head_dim, inputs, PLAIN_FRAME)
    assert error_of_4_bit_keys(head_dim, inputs, KeyFrame(mean=common)) < plain / 5


@pytest.mark.parametrize("head_dim", HEAD_SIZES)
def test_rotation_and_scales_tame_loud_channels(head_dim: int) -> None:
    inputs = Inputs(head_dim)
    inputs.k[..., 5] *= 20.0
    inputs.q[..., 5] /= 20.0
    scale = torch.ones(LAYERS, KV_HEADS, head_dim)
    scale[..., 5] = 20.0
    plain = error_of_4_bit_keys(head_dim, inputs, PLAIN_FRAME)
    rotated = error_of_4_bit_keys(head_dim, inputs, KeyFrame(rotated=True))
    both = error_of_4_bit_keys(head_dim, inputs, KeyFrame(rotated=True, channel_scale=scale))
    assert rotated < plain / 4
    assert both < 0.75 * rotated


@pytest.mark.parametrize("head_dim", HEAD_SIZES)
def test_a_frame_is_small_beside_a_page(head_dim: int) -> None:
    page_format = PageFormat.for_policy(config(head_dim), 4, torch.bfloat16)
    frame = frames(head_dim)["all"]
    assert frame.mean is not None and frame.channel_scale is not None
    assert frame.mean.nbytes + frame.channel_scale.nbytes == frame_bytes(page_format)
    assert frame_bytes(page_format) < page_format.bytes_per_page / 8


def test_a_plain_frame_touches_nothing() -> None:
    inputs = Inputs(64)
    assert PLAIN_FRAME.keys(0, inputs.k) is inputs.k
    assert PLAIN_FRAME.queries(0, inputs.q) is inputs.q
    assert replace(PLAIN_FRAME, mean=torch.ones(1, KV_HEADS, 64)).queries(0, inputs.q) is inputs.q
