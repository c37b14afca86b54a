"""Free memory is what the machine and its container leave; the cache takes its share of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.memory import (
    _container_memory,
    cache_pages,
    free_memory,
    told_of_lack,
)
from awqkit_runtime.errors import ConfigError, OutOfMemoryError

FORMAT = PageFormat(
    num_layers=2, num_kv_heads=2, head_dim=64, k_bits=16, v_bits=16, dtype=torch.bfloat16
)
PAGE = FORMAT.bytes_per_page


def pages(
    free_pages: float, *, session_len: int = 200, device: str = "cpu", **settings: object
) -> int:
    return cache_pages(
        EngineConfig(**settings),  # type: ignore[arg-type]
        FORMAT,
        device=torch.device(device),
        session_len=session_len,
        free_bytes=int(free_pages * PAGE),
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
    with pytest.raises(OutOfMemoryError) as caught:
        pages(3.9, cache_max_entry_count=1.0, session_len=4 * PAGE_TOKENS)
    for word in ("up to 192", "session_len", "quant_policy", "cache_max_entry_count"):
        assert word in str(caught.value)


def test_no_session_is_offered_where_not_even_a_page_fits() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        pages(0.9, cache_max_entry_count=1.0)
    assert "session_len" not in str(caught.value)
    assert "Set max_prefill_tokens or max_batch_size lower" in str(caught.value)


def test_free_memory_is_no_more_than_the_machine_has() -> None:
    assert 2**24 < free_memory(torch.device("cpu")) < 2**50


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, []),
        ({"memory.max": "max", "memory.current": "5"}, []),
        (
            {
                "memory.max": "1000\n",
                "memory.current": "700",
                "memory.stat": "anon 400\ninactive_file 250\n",
            },
            [550],
        ),
        ({"memory.max": "100", "memory.current": "130", "memory.stat": ""}, [0]),
        (
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "600",
                "memory/memory.stat": "total_inactive_file 100\n",
            },
            [500],
        ),
    ],
    ids=["none", "unlimited", "v2", "full", "v1"],
)
def test_a_containers_limit_counts(
    tmp_path: Path, files: dict[str, str], expected: list[int]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _container_memory(tmp_path) == expected


def test_a_gpu_that_others_took_is_told_of_in_words() -> None:
    with pytest.raises(OutOfMemoryError, match="another process takes some"), told_of_lack():
        raise torch.cuda.OutOfMemoryError
