"""Sizes of pages, counted by hand."""

from __future__ import annotations

import pytest
import torch

from awqkit.checkpoint import DecoderConfig
from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat, pages_for
from awqkit_runtime.errors import ConfigError


def config(**changes: int) -> DecoderConfig:
    sizes = {
        "hidden_size": 256,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 64,
        "intermediate_size": 512,
        "vocab_size": 100,
        "max_position_embeddings": 128,
    }
    return DecoderConfig(**(sizes | changes), norm_eps=1e-5)


@pytest.mark.parametrize(
    ("policy", "dtype", "bytes_per_head_token"),
    [
        (0, torch.float32, 64 * 4 * 2),
        (0, torch.bfloat16, 64 * 2 * 2),
        (8, torch.bfloat16, (64 + 4) * 2),
        (4, torch.bfloat16, (32 + 4) * 2),
        ("k8v4", torch.bfloat16, (64 + 4) + (32 + 4)),
        ("8", torch.float32, (64 + 4) * 2),
    ],
)
def test_bytes_per_page(policy: int | str, dtype: torch.dtype, bytes_per_head_token: int) -> None:
    format = PageFormat.for_policy(config(), policy, dtype)
    assert format.bytes_per_page == PAGE_TOKENS * 3 * 2 * bytes_per_head_token
    assert format.bytes_per_token * PAGE_TOKENS == format.bytes_per_page


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="quant_policy is 5"):
        PageFormat.for_policy(config(), 5, torch.float32)


@pytest.mark.parametrize("bits", [(16, 8), (3, 3), (8, 16)])
def test_impossible_widths_are_refused(bits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="pages hold"):
        PageFormat(
            num_layers=1,
            num_kv_heads=1,
            head_dim=8,
            k_bits=bits[0],
            v_bits=bits[1],
            dtype=torch.bfloat16,
        )


def test_pages_for() -> None:
    counts = {0: 0, 1: 1, PAGE_TOKENS: 1, PAGE_TOKENS + 1: 2}
    assert {tokens: pages_for(tokens) for tokens in counts} == counts
