"""Free memory is what the machine and its container leave."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from awqkit_runtime.engine import engine as engine_module
from awqkit_runtime.engine.memory import (
    _container_memory,
    claim,
    free_memory,
    told_of_lack,
)
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.errors import OutOfMemoryError
from tests.engine.fakes import generate, make_engine


def test_free_memory_is_no_more_than_the_machine_has() -> None:
    assert 2**24 < free_memory(torch.device("cpu")) < 2**50


class Owner:
    """Of memory, for as long as it lives."""


def have_free_gpus(monkeypatch: pytest.MonkeyPatch, *, current: int) -> None:
    """With 1,000 bytes free on each."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)


def test_what_an_engine_takes_later_is_not_free_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    have_free_gpus(monkeypatch, current=1)
    devices = [torch.device(name) for name in ("cuda", "cuda:1", "cuda:0")]
    first, second = Owner(), Owner()
    claim(first, 300, devices[0])
    claim(second, 250, devices[1])
    assert [free_memory(device) for device in devices] == [450, 450, 1000]
    claim(second, 900, devices[1])
    assert free_memory(devices[0]) == 0
    del second
    assert free_memory(devices[0]) == 700
    del first
    assert [free_memory(device) for device in devices] == [1000] * 3


def test_an_engine_claims_what_its_steps_take_until_it_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    have_free_gpus(monkeypatch, current=0)
    monkeypatch.setattr(engine_module, "claimed_for_steps", lambda decoder, config: 300)
    gpu = torch.device("cuda")
    engine = make_engine()
    generate(engine, [[1, 2, 3]], SamplingParams(max_tokens=3))
    assert free_memory(gpu) == 700
    del engine
    gc.collect()
    assert free_memory(gpu) == 1000


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
