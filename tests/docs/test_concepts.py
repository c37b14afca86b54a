"""The numbers of docs/concepts.md, computed."""

from __future__ import annotations

import re

import pytest
import torch

from awqkit_runtime.cache.page_codec import dequantize_vectors, quantize_vectors
from tests.docs.blocks import ROOT, blocks

PAGE = "docs/concepts.md"


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The page's key, its codes and what they mean: [2 heads, 4] each."""
    tables = [block.text for block in blocks(PAGE) if block.text.startswith("head 0")]
    key, codes, back = (
        torch.tensor([[float(n) for n in line.split()[2:]] for line in table.splitlines()])
        for table in tables
    )
    return key, codes, back


def test_the_cache_example_is_what_the_cache_does() -> None:
    key, shown_codes, shown_back = example()
    codes, params = quantize_vectors(key, 4)
    assert torch.equal(codes.float(), shown_codes)
    low, scale = key.amin(1, keepdim=True), (key.amax(1, keepdim=True) - key.amin(1, True)) / 15
    assert torch.allclose(shown_codes * scale + low, shown_back, atol=6e-3)
    assert torch.all((shown_back - key).abs() <= scale / 2 + 3e-3)
    # The line that the cache fits through these codes loses less.
    fitted = dequantize_vectors(codes.float(), params)
    assert (fitted - key).square().sum() < (shown_codes * scale + low - key).square().sum()


@pytest.mark.parametrize("head", [0, 1])
def test_the_parameters_of_the_example(head: int) -> None:
    key, _, _ = example()
    row = re.search(rf"\| head {head} \| (.*) \| (.*) \| (.*) \|", (ROOT / PAGE).read_text())
    assert row is not None
    low, high, scale = (float(cell) for cell in row.groups())
    assert (low, high) == pytest.approx((float(key[head].min()), float(key[head].max())))
    assert scale == pytest.approx((high - low) / 15, rel=2e-3)


def test_one_scale_for_both_heads_would_be_worse() -> None:
    key, _, _ = example()
    scale = float(key.max() - key.min()) / 15
    assert scale / 2 == pytest.approx(0.15)
    assert float(key[0].max() - key[0].min()) / 15 / 2 == pytest.approx(0.067, abs=1e-3)


def test_memory_figures() -> None:
    text = (ROOT / PAGE).read_text()
    a_token = 2 * 32 * 8 * 128 * 2
    assert a_token == 128 * 1024 and "128 KiB" in text
    assert a_token * 32768 == 4 * 2**30 and "4 GiB" in text
    assert "128 + 4" in text and "64 + 4" in text
    assert round(256 / 132, 1) == 1.9 and round(256 / 68, 1) == 3.8 and "1.9 or 3.8" in text
    assert round((128 * 4 + 16 + 4) / 128, 2) == 4.16 and "4.16 bits" in text
