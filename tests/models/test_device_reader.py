"""Large tensors, read in parts by several threads, are those that are read at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from awqkit.checkpoint import CheckpointError
from awqkit.checkpoint.safetensors_file import StoredTensor, read_header, read_tensor
from awqkit_runtime.models import device_reader


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, StoredTensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "matrix": torch.randn(53, 7, generator=generator).bfloat16(),
        "vector": torch.randn(31, generator=generator),
        "row": torch.randint(-9, 9, (1, 40), generator=generator, dtype=torch.int32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return read_header(tmp_path / "model.safetensors")


def read_in_parts(entry: StoredTensor, rows: Sequence[range] | None) -> torch.Tensor:
    with ThreadPoolExecutor(3) as pool:
        return device_reader._read_onto(torch.device("cpu"), pool, entry, rows)


@pytest.mark.parametrize("part_bytes", [1, 14, 100, 2**20])
def test_parts_make_the_whole(
    stored: dict[str, StoredTensor], monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr(device_reader, "_PART_BYTES", part_bytes)
    for entry in stored.values():
        assert torch.equal(read_in_parts(entry, None), read_tensor(entry))
    rows = [range(40, 53), range(2, 3), range(0, 11)]
    found = read_in_parts(stored["matrix"], rows)
    assert torch.equal(found, read_tensor(stored["matrix"], rows))


def test_a_file_that_ends_early_is_told(
    stored: dict[str, StoredTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_reader, "_PART_BYTES", 14)
    path = stored["matrix"].path
    path.write_bytes(path.read_bytes()[: stored["matrix"].stop - 100])
    with pytest.raises(CheckpointError, match="ends inside"):
        read_in_parts(stored["matrix"], None)


def test_where_no_memory_can_be_pinned_other_memory_does(
    stored: dict[str, StoredTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(entry: StoredTensor, rows: Sequence[range] | None, **settings: bool) -> torch.Tensor:
        if settings.get("pinned"):
            raise RuntimeError("CUDA error: out of memory")
        return read_tensor(entry, rows)

    monkeypatch.setattr(device_reader, "read_tensor", refuse)
    read = device_reader.reader_for(torch.device("cuda"))
    assert torch.equal(read(stored["matrix"], None), read_tensor(stored["matrix"]))
