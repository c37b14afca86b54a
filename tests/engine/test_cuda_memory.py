"""The plan of a GPU's memory against what the device reports."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit_runtime.bench.random_weights import random_decoder
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.memory import free_memory
from awqkit_runtime.engine.model_text import NoText
from awqkit_runtime.engine.runners import claimed_for_steps
from awqkit_runtime.model_size import read_model_size
from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.models.loader import ready_placement
from tests.engine.gpu_memory import serve

pytestmark = pytest.mark.gpu
#: The shape of a chat model of 7.7 billion parameters.
CONFIG = {
    "model_type": "internlm2",
    "architectures": ["InternLM2ForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 92544,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def measure(folder: Path, cache: str, *kind: str) -> dict[str, Any]:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    command = [sys.executable, "-m", "tests.engine.gpu_memory", str(folder), cache, *kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(figures, indent=1))
    return figures


def test_the_plan_holds(tmp_path: Path) -> None:
    """Within 2 %, when everything has run that takes memory; nothing large comes after ready."""
    found = measure(tmp_path, "8GiB")
    assert abs(found["used"] - found["planned"]) <= 0.02 * found["planned"]
    assert found["used"] - found["ready"] <= found["graphs"] + found["libraries"]


def test_so_does_that_of_a_deterministic_engine(tmp_path: Path) -> None:
    found = measure(tmp_path, "8GiB", "deterministic")
    assert abs(found["used"] - found["planned"]) <= 0.02 * found["planned"]


def test_a_cache_that_takes_all_leaves_room_for_the_largest_step(tmp_path: Path) -> None:
    found = measure(tmp_path, "1.0")
    assert abs(found["used"] - found["planned"]) <= 0.02 * found["planned"]


def test_a_second_engine_leaves_the_first_what_it_set_aside(tmp_path: Path) -> None:
    """Both then run their largest steps, beside a cache that takes all that the second may have."""
    device = torch.device("cuda", 0)
    config = EngineConfig(device=device, cache_max_entry_count="1GiB", seed=0)
    decoder = small_decoder(tmp_path, device)
    before = free_memory(device)
    first = Engine(decoder, NoText(), config)
    kept = claimed_for_steps(decoder, config)
    assert kept > 2**28
    assert free_memory(device) <= before - 2**30 - kept
    second = Engine(decoder, NoText(), replace(config, cache_max_entry_count=1.0))
    for engine in (second, first, second):
        serve(engine, decoder.config.vocab_size)


def small_decoder(folder: Path, device: torch.device) -> Decoder:
    """Two layers of the large model."""
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 2}))
    size = read_model_size(folder, "awq")
    return random_decoder(size, ready_placement(size.config, device, "auto"))
