"""The cache takes its share of what is free; where that is too little, it says what helps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.cache_size import cache_pages
from awqkit_runtime.engine.step_memory import LIBRARY_BYTES
from awqkit_runtime.errors import ConfigError, OutOfMemoryError

FORMAT = PageFormat(
    num_layers=2, num_kv_heads=2, head_dim=64, k_bits=16, v_bits=16, dtype=torch.bfloat16
)
PAGE = FORMAT.bytes_per_page
#: In pages.
LIBRARIES = LIBRARY_BYTES / PAGE


def pages(
    free_pages: float,
    *,
    session_len: int = 200,
    device: str = "cpu",
    k_bits: int = 16,
    v_bits: int = 16,
    reserved_pages: float = 0,
    **settings: object,
) -> int:
    """Sizes are in dense pages, whatever the bits."""
    return cache_pages(
        EngineConfig(**settings),  # type: ignore[arg-type]
        replace(FORMAT, k_bits=k_bits, v_bits=v_bits),
        device=torch.device(device),
        session_len=session_len,
        free_bytes=int(free_pages * PAGE),
        reserved_bytes=int(reserved_pages * PAGE),
    )


def test_a_share_of_free_memory_or_an_absolute_size() -> None:
    assert pages(100, cache_max_entry_count=0.4, max_batch_size=64) == 40
    assert pages(100, cache_max_entry_count=str(30 * PAGE), max_batch_size=64) == 30
    with pytest.raises(ConfigError, match=r"only .* are free"):
        pages(100, cache_max_entry_count=101 * PAGE)


def test_full_sessions_bound_the_cache_on_cpu_only() -> None:
    assert pages(10_000, max_batch_size=3, session_len=200) == 3 * 4
    assert pages(10_000, max_batch_size=3, session_len=200, device="cuda") == 8000
    assert pages(10_000, session_len=PAGE_TOKENS) == 16


def test_one_session_must_fit() -> None:
    assert pages(4, cache_max_entry_count=1.0, session_len=4 * PAGE_TOKENS) == 4
    with pytest.raises(OutOfMemoryError, match="session of 256 tokens"):
        pages(3.9, cache_max_entry_count=1.0, session_len=4 * PAGE_TOKENS)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (
            {"cache_max_entry_count": 1.0},
            "Set session_len lower (up to 192 fits), or choose quant_policy 8 or k8v4 or 4.",
        ),
        (
            {"cache_max_entry_count": 0.3},
            "Set session_len lower (up to 64 fits), or choose quant_policy 4.",
        ),
        (
            {"k_bits": 8, "v_bits": 8, "free_pages": 2.4},
            "Set session_len lower (up to 192 fits), choose quant_policy k8v4 or 4, "
            "or raise cache_max_entry_count.",
        ),
        (
            {"k_bits": 8, "v_bits": 4, "free_pages": 1.5},
            "Set session_len lower (up to 128 fits), or choose quant_policy 4.",
        ),
        (
            {"k_bits": 4, "v_bits": 4, "free_pages": 1},
            "Set session_len lower (up to 128 fits).",
        ),
        (
            {"k_bits": 4, "v_bits": 4, "free_pages": 9, "cache_max_entry_count": "64tok"},
            "Set session_len lower (up to 64 fits), or raise cache_max_entry_count.",
        ),
        (
            {"free_pages": LIBRARIES + 9, "reserved_pages": LIBRARIES + 8.5},
            "Set max_prefill_tokens or max_batch_size lower.",
        ),
        (
            {"free_pages": LIBRARIES + 2, "reserved_pages": LIBRARIES + 1.5},
            "Choose quant_policy k8v4 or 4, or set max_prefill_tokens or max_batch_size lower; "
            "session_len has to be lower too.",
        ),
        (
            {"free_pages": 3.9, "cache_max_entry_count": 0.2},
            "Choose quant_policy 8 or k8v4 or 4, or raise cache_max_entry_count; session_len has "
            "to be lower too.",
        ),
        (
            {"free_pages": LIBRARIES - 9, "reserved_pages": LIBRARIES + 9},
            "End what else takes memory, or choose a smaller model.",
        ),
        (
            {"free_pages": 0.2, "cache_max_entry_count": 1.0},
            "End what else takes memory, or choose a smaller model.",
        ),
    ],
)
def test_a_lack_names_only_what_helps(settings: dict[str, Any], advice: str) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        pages(**{"free_pages": 3.9, "session_len": 4 * PAGE_TOKENS} | settings)
    assert str(caught.value).endswith(f". {advice}")
