"""The plan of a GPU's memory against what the device reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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


def measure(folder: Path, cache: str) -> dict[str, Any]:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    command = [sys.executable, "-m", "tests.engine.gpu_memory", str(folder), cache]
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


def test_a_cache_that_takes_all_leaves_room_for_the_largest_step(tmp_path: Path) -> None:
    found = measure(tmp_path, "1.0")
    assert abs(found["used"] - found["planned"]) <= 0.02 * found["planned"]
