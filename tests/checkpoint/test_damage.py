"""Random damage: whatever happens to a folder's files, the answer is an error with a cure."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit.checkpoint import (
    CheckpointError,
    OutputError,
    open_checkpoint,
    read_decoder_config,
    write_checkpoint,
)
from tests.checkpoint.folders import quantized_weights
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.slow

STRANGE: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2.5,
    10**30,
    "text",
    "",
    [],
    [1, "a"],
    {},
    {"a": 1},
    float("nan"),
    float("inf"),
]


def strange_configs(raw: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key in [*raw, "head_dim", "quantization_config", "layer_types", "rope_scaling"]:
        for value in STRANGE:
            yield raw | {key: value}
    for section in ("rope_parameters", "rope_scaling", "quantization_config"):
        nested = raw.get(section)
        for key in nested if isinstance(nested, dict) else ():
            for value in STRANGE:
                yield raw | {section: nested | {key: value}}


@pytest.mark.parametrize("family", ["llama", "internlm2", "mistral", "qwen2", "qwen3"])
def test_strange_values_in_config(tmp_path: Path, family: str) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "beta_fast": 32.0}
    folder = write_tiny_model(tmp_path, family, rope_parameters=yarn)
    path = folder / "config.json"
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    for changed in strange_configs(json.loads(path.read_text()) | {"quantization_config": awq}):
        path.write_text(json.dumps(changed))
        with contextlib.suppress(CheckpointError):
            read_decoder_config(folder)
        with contextlib.suppress(CheckpointError):
            open_checkpoint(folder)


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_in_the_header(tmp_path: Path, seed: int) -> None:
    folder = write_tiny_model(tmp_path, num_hidden_layers=1)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(seed)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(header_end)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            checkpoint = open_checkpoint(folder)
            for name in checkpoint.names():
                checkpoint.tensor(name)
        except CheckpointError:
            refused += 1
    assert refused > 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "awqkit-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_disk_that_is_really_full(tmp_path: Path, small_disk: Path) -> None:
    source = open_checkpoint(write_tiny_model(tmp_path / "in", dtype=torch.bfloat16))
    weights = quantized_weights(source)
    write_checkpoint(small_disk / "fits", weights, source=source, format="awq")
    # More than the estimate beforehand asks for, less than the tensors take.
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 318_000))
    with pytest.raises(OutputError, match="disk is full"):
        write_checkpoint(small_disk / "out", weights, source=source, format="awq")
    assert {path.name for path in small_disk.iterdir()} == {"fits", "ballast"}
