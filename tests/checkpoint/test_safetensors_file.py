from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from awqkit.checkpoint import CheckpointError
from awqkit.checkpoint.safetensors_file import TORCH_DTYPES, read_header, read_tensor


def write_raw(path: Path, header: Any, data: bytes, *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tensors = {name: (torch.randn(5, 3) * 50).to(dtype) for name, dtype in TORCH_DTYPES.items()} | {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "odd": torch.ones(3).byte(),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    assert set(header) == set(tensors)
    for name, tensor in tensors.items():
        read = read_tensor(header[name])
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


def test_reads_ranges_of_rows(tmp_path: Path) -> None:
    tensor = torch.randn(10, 4).bfloat16()
    save_file({"pad": torch.ones(1), "t": tensor}, tmp_path / "a.safetensors")
    stored = read_header(tmp_path / "a.safetensors")["t"]
    rows = read_tensor(stored, (range(6, 8), range(1, 2)))
    assert torch.equal(rows, tensor[[6, 7, 1]])


def test_changing_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    save_file({"t": torch.ones(4)}, tmp_path / "a.safetensors")
    stored = read_header(tmp_path / "a.safetensors")["t"]
    read_tensor(stored).zero_()
    assert torch.equal(read_tensor(stored), torch.ones(4))


def test_misaligned_data_is_read(tmp_path: Path) -> None:
    header = {"a": entry("U8", [1], 0, 1), "b": entry("F32", [2], 1, 9)}
    data = b"\x07" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    stored = read_header(write_raw(tmp_path / "a.safetensors", header, data))
    assert read_tensor(stored["b"]).tolist() == [1.5, -2.0]


GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("F16", [2, 2], 8, 16)}
LIES: dict[str, tuple[Any, str]] = {
    "gap": ({"a": entry("F32", [2], 0, 8), "b": entry("F16", [2], 12, 16)}, "leaves a gap"),
    "gap at the start": ({"b": entry("F16", [4], 8, 16)}, "leaves a gap"),
    "overlap": ({"a": entry("F32", [3], 0, 12), "b": entry("F16", [4], 8, 16)}, "overlaps"),
    "same bytes twice": (
        {"a": entry("F32", [4], 0, 16), "b": entry("F32", [4], 0, 16)},
        "overlaps",
    ),
    "beyond the file": (GOOD | {"c": entry("F32", [4], 16, 32)}, "truncated"),
    "bytes of no tensor": ({"a": entry("F32", [2], 0, 8)}, "belong to no tensor"),
    "size against shape": (GOOD | {"a": entry("F32", [3], 0, 8)}, "cannot take the 8 bytes"),
    "size against dtype": (GOOD | {"a": entry("BF16", [2], 0, 8)}, "cannot take the 8 bytes"),
    "overflowing shape": (GOOD | {"a": entry("F32", [2**62, 4], 0, 8)}, "cannot take"),
    "negative shape": (GOOD | {"a": entry("F32", [-2, -1], 0, 8)}, "no proper dtype, shape"),
    "fractional shape": (GOOD | {"a": entry("F32", [2.0], 0, 8)}, "no proper dtype, shape"),
    "boolean shape": (GOOD | {"a": entry("F32", [True], 0, 4)}, "no proper dtype, shape"),
    "text offsets": (GOOD | {"a": entry("F32", [2], "0", 8)}, "no proper dtype, shape"),
    "reversed offsets": (GOOD | {"a": entry("F32", [2], 8, 0)}, "cannot take"),
    "negative offsets": (GOOD | {"a": entry("F32", [2], -8, 0)}, "no proper dtype, shape"),
    "no offsets": (GOOD | {"a": {"dtype": "F32", "shape": [2]}}, "no proper dtype, shape"),
    "no object": (GOOD | {"a": 7}, "no proper dtype, shape"),
    "unknown dtype": (GOOD | {"a": entry("Q4", [2], 0, 8)}, "dtype Q4"),
    "not JSON": (b"{'a': 1}", "not valid JSON"),
    "not UTF-8": (b'{"\xff\xfe": 1}', "not valid JSON"),
    "not an object": (b"[1, 2]", "an object is needed"),
    "deep nesting": (b"[" * 200_000, "not valid JSON"),
    "name twice": (
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
        "'a' twice",
    ),
    "empty": (b"", "not valid JSON"),
}


@pytest.mark.parametrize("case", LIES)
def test_header_that_lies_is_refused(tmp_path: Path, case: str) -> None:
    header, message = LIES[case]
    path = write_raw(tmp_path / "model.safetensors", header, bytes(16))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [10**18, 2**64 - 1, 10**8 + 1, 10**4])
def test_absurd_header_length_is_refused(tmp_path: Path, length: int) -> None:
    path = write_raw(tmp_path / "a.safetensors", GOOD, bytes(16), length=length)
    with pytest.raises(CheckpointError, match=f"header of {length} bytes"):
        read_header(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.safetensors", GOOD, bytes(16))
    read_header(path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_header(path)


def test_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        read_header(path)


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.safetensors", GOOD, bytes(16))
    stored = read_header(path)["b"]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="shortened"):
        read_tensor(stored)


def test_dtype_without_values_here_is_refused_on_reading(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.safetensors", {"a": entry("F8_E4M3", [16], 0, 16)}, bytes(16))
    with pytest.raises(CheckpointError, match="F8_E4M3"):
        read_tensor(read_header(path)["a"])
