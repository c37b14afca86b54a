"""Weights that threads read ahead: in order, and what goes wrong in a thread is told.

The device "meta" is read for as a GPU is, and takes tensors without one.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from awqkit.checkpoint import Checkpoint, CheckpointError, open_checkpoint, stored_values
from awqkit.checkpoint.safetensors_file import TensorReader
from awqkit_runtime.models import weight_reader
from awqkit_runtime.models.weight_reader import outer_read_meanwhile, read_layers
from tests.tiny_models import write_tiny_model

ELSEWHERE = torch.device("meta")
LAYERS = 9


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(write_tiny_model(tmp_path, "llama", num_hidden_layers=LAYERS))


@pytest.fixture(autouse=True)
def _values_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of this device have none."""
    monkeypatch.setattr(stored_values, "_require_finite", lambda *arguments: None)


def read(checkpoint: Checkpoint) -> tuple[list[Any], dict[str, Any]]:
    with outer_read_meanwhile(checkpoint, ELSEWHERE, torch.bfloat16) as outer:
        return list(read_layers(checkpoint, ELSEWHERE)), dict(outer())


def break_reading(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, part: str, error: BaseException
) -> None:
    whole = checkpoint.tensor

    def tensor(name: str, read: TensorReader) -> Tensor:
        if part in name:
            raise error
        return whole(name, read)

    monkeypatch.setattr(checkpoint, "tensor", tensor)


def break_off(checkpoint: Checkpoint) -> None:
    with outer_read_meanwhile(checkpoint, ELSEWHERE, torch.bfloat16):
        for _ in read_layers(checkpoint, ELSEWHERE):
            raise KeyboardInterrupt


def test_layers_come_in_order_and_whole(checkpoint: Checkpoint) -> None:
    layers, outer = read(checkpoint)
    assert len(layers) == LAYERS
    for number, block in enumerate(layers):
        expected = checkpoint.packed_block(number)
        assert block.keys() == expected.keys()
        assert all(torch.equal(block[name], weight) for name, weight in expected.items())
    assert {name: tuple(weight.shape) for name, weight in outer.items()} == {
        name: checkpoint.shape(name)
        for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    }


@pytest.mark.parametrize("device", [ELSEWHERE, torch.device("cpu")])
def test_large_matrices_come_in_the_dtype_in_which_they_stay(
    checkpoint: Checkpoint, device: torch.device
) -> None:
    stored = checkpoint.tensor("model.norm.weight").dtype
    with outer_read_meanwhile(checkpoint, device, torch.float16) as outer:
        dtypes = {name: weight.dtype for name, weight in outer().items()}
    assert stored != torch.float16
    assert dtypes == {
        "model.embed_tokens.weight": torch.float16,
        "model.norm.weight": stored,
        "lm_head.weight": torch.float16,
    }


def test_little_is_read_ahead_of_what_is_large(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    whole = checkpoint.packed_or_dense
    monkeypatch.setattr(
        checkpoint, "packed_or_dense", lambda name, read: begun.append(name) or whole(name, read)
    )
    monkeypatch.setattr(weight_reader, "_AHEAD_BYTES", 1)
    weights = len(checkpoint.block_names(0))
    for number, _ in enumerate(read_layers(checkpoint, ELSEWHERE), start=1):
        assert len(begun) == number * weights


@pytest.mark.parametrize("part", ["layers.0.", "layers.5.", f"layers.{LAYERS - 1}.", "embed"])
def test_an_error_of_a_thread_reaches_the_reader(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    threads = threading.active_count()
    break_reading(checkpoint, monkeypatch, part, CheckpointError("cut short"))
    with pytest.raises(CheckpointError, match="cut short"):
        read(checkpoint)
    assert threading.active_count() == threads


def test_a_file_that_vanished_meanwhile_is_told(checkpoint: Checkpoint) -> None:
    for path in checkpoint.folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        read(checkpoint)


def test_who_breaks_off_waits_for_what_is_being_read_alone(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, begun = threading.active_count(), []
    whole = checkpoint.packed_or_dense
    monkeypatch.setattr(
        checkpoint, "packed_or_dense", lambda name, read: begun.append(name) or whole(name, read)
    )
    with pytest.raises(KeyboardInterrupt):
        break_off(checkpoint)
    assert len(begun) < sum(len(checkpoint.block_names(layer)) for layer in range(LAYERS))
    assert threading.active_count() == threads
