"""The engine's settings: what is accepted, how it is normalised, what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from awqkit_runtime.config import EngineConfig, TokenCount, parse_size, resolve_device
from awqkit_runtime.errors import AwqkitError, ConfigError

GIB = 2**30


@pytest.mark.parametrize(
    ("given", "policy"), [(0, 0), (8, 8), ("4", 4), ("k8v4", "k8v4"), (" K8V4 ", "k8v4")]
)
def test_policies_are_normalised(given: Any, policy: Any) -> None:
    assert EngineConfig(quant_policy=given).policy == policy


@pytest.mark.parametrize(
    ("given", "free", "expected"),
    [
        (0.5, 10 * GIB, 5 * GIB),
        (1, 10 * GIB, 10 * GIB),
        ("0.25", 8 * GIB, 2 * GIB),
        ("8GiB", 10 * GIB, 8 * GIB),
        ("500 MB", GIB, 500_000_000),
        ("1.5gib", 2 * GIB, 3 * GIB // 2),
        (2**20, GIB, 2**20),
        ("6400tok", GIB, 100_000),
        ("65 Tokens", GIB, 2_000),
        (TokenCount(64), GIB, 1_000),
    ],
)
def test_the_cache_takes_a_share_or_a_size(given: Any, free: int, expected: int) -> None:
    config = EngineConfig(cache_max_entry_count=given)
    assert config.cache_bytes(free, page_tokens=64, page_bytes=1000) == expected


def test_a_size_beyond_the_free_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"8\.00 GiB, but only 2\.00 GiB are free"):
        EngineConfig(cache_max_entry_count="8GiB").cache_bytes(
            2 * GIB, page_tokens=64, page_bytes=1000
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_policy": 5}, "quant_policy is 5"),
        ({"quant_policy": True}, "quant_policy is True"),
        ({"quant_policy": 8.0}, "quant_policy is 8.0"),
        ({"cache_max_entry_count": 0}, "cache_max_entry_count is '0'"),
        ({"cache_max_entry_count": 1.5}, "cache_max_entry_count is '1.5'"),
        ({"cache_max_entry_count": "8"}, "such as '32768tok'"),
        ({"cache_max_entry_count": "0tok"}, "cache_max_entry_count is '0tok'"),
        ({"cache_max_entry_count": "nan"}, "cache_max_entry_count is 'nan'"),
        ({"cache_max_entry_count": "inf"}, "cache_max_entry_count is 'inf'"),
        ({"cache_max_entry_count": "much"}, "'much' is not a size"),
        ({"tp": 2, "deterministic": True}, "Use tp=1"),
        ({"tp": 0}, "tp is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"dtype": torch.int8}, "dtype is torch.int8"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"session_len": 0}, "session_len is 0"),
        ({"max_batch_size": 2.5}, "max_batch_size is 2.5"),
        ({"max_prefill_tokens": -1}, "max_prefill_tokens is -1"),
        ({"model_format": "gguf"}, "model_format is 'gguf'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_malformed_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig(**settings)
    assert message in str(caught.value)
    assert isinstance(caught.value, AwqkitError)


def test_dtypes_are_normalised() -> None:
    assert EngineConfig(dtype="bfloat16").dtype == torch.bfloat16
    assert EngineConfig(dtype="torch.float16").dtype == torch.float16
    assert EngineConfig().dtype == "auto"


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineConfig().tp = 2  # type: ignore[misc]


def test_a_missing_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="torch sees 0 CUDA devices"):
        resolve_device("cuda")


def test_the_batch_suits_the_device() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert EngineConfig().batch_size_for(cpu) < EngineConfig().batch_size_for(cuda)
    assert EngineConfig(max_batch_size=3).batch_size_for(cpu) == 3


def test_sizes() -> None:
    assert parse_size("1kb") == 1000
    assert parse_size("2 KiB") == 2048
    with pytest.raises(ConfigError, match="not a size"):
        parse_size("-1GB")
