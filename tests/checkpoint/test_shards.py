from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from awqkit.checkpoint import CheckpointError
from awqkit.checkpoint.shards import find_tensors

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / FIRST)
    save_file({"c": torch.ones(4)}, tmp_path / SECOND)
    write_index(tmp_path, {"a": FIRST, "b": FIRST, "c": SECOND})
    return tmp_path


def write_index(folder: Path, weight_map: Any) -> None:
    text = json.dumps({"metadata": {"total_size": 36}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def test_shards_are_joined(sharded: Path) -> None:
    tensors = find_tensors(sharded)
    assert {name: entry.path.name for name, entry in tensors.items()} == {
        "a": FIRST,
        "b": FIRST,
        "c": SECOND,
    }


def test_single_file_under_any_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    assert set(find_tensors(tmp_path)) == {"a"}


def test_model_file_wins_over_others_without_an_index(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "consolidated.safetensors")
    assert set(find_tensors(tmp_path)) == {"a"}


@pytest.mark.parametrize(
    "target",
    [
        "../model-00002-of-00002.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        "x.safetensors\0",
        "..",
        ".",
        "",
        "pytorch_model.bin",
        7,
        None,
        ["model.safetensors"],
    ],
)
def test_index_that_leaves_the_folder_is_refused(sharded: Path, target: Any) -> None:
    write_index(sharded, {"a": FIRST, "b": FIRST, "c": target})
    with pytest.raises(CheckpointError, match="no plain name"):
        find_tensors(sharded)


def test_index_that_leaves_the_folder_is_refused_beside_a_single_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    write_index(tmp_path, {"a": "../model.safetensors"})
    with pytest.raises(CheckpointError, match="no plain name"):
        find_tensors(tmp_path)


def test_links_of_a_hub_cache_are_followed(tmp_path: Path, sharded: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate([sharded / FIRST, sharded / SECOND]):
        path.rename(blobs / str(number))
        path.symlink_to(Path("blobs") / str(number))
    assert set(find_tensors(sharded)) == {"a", "b", "c"}


def test_name_twice_in_the_index(sharded: Path) -> None:
    text = f'{{"weight_map": {{"a": "{FIRST}", "b": "{FIRST}", "a": "{SECOND}"}}}}'
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="'a' twice"):
        find_tensors(sharded)


def test_tensor_in_two_files(sharded: Path) -> None:
    save_file({"c": torch.ones(4), "a": torch.zeros(2)}, sharded / SECOND)
    with pytest.raises(CheckpointError, match="hold tensor a"):
        find_tensors(sharded)


def test_missing_shard(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    with pytest.raises(CheckpointError, match=f"lacks 1 of the 2 files.*{SECOND}"):
        find_tensors(sharded)


def test_tensor_that_its_shard_lacks(sharded: Path) -> None:
    write_index(sharded, {"a": FIRST, "b": FIRST, "c": SECOND, "d": SECOND})
    with pytest.raises(CheckpointError, match="places tensor d"):
        find_tensors(sharded)


def test_tensor_in_another_shard_than_said(sharded: Path) -> None:
    write_index(sharded, {"a": FIRST, "b": SECOND, "c": SECOND})
    with pytest.raises(CheckpointError, match="places tensor b"):
        find_tensors(sharded)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_index_without_a_map(sharded: Path, weight_map: Any) -> None:
    write_index(sharded, weight_map)
    with pytest.raises(CheckpointError, match="no weight_map"):
        find_tensors(sharded)


def test_index_that_is_no_json(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        find_tensors(sharded)


def test_shards_without_an_index(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="Fetch the index"):
        find_tensors(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=f"{name}.*code inside.*save_pretrained"):
        find_tensors(tmp_path)


def test_pickles_beside_safetensors_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert set(find_tensors(tmp_path)) == {"a"}


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        find_tensors(tmp_path)
