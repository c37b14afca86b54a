"""Reading of one safetensors file whose header is believed only after every claim was checked.

Layout (https://huggingface.co/docs/safetensors): a little-endian uint64 with the length of the
header, the header as a JSON object, then the bytes of the tensors without gaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.json_file import parse_json_object

LENGTH_BYTES = 8
#: The format's own limit on the header.
MAX_HEADER_BYTES = 100_000_000
METADATA_KEY = "__metadata__"

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
#: Bits of the format's other dtypes: their sizes are checked, their values are never read.
_OTHER_BITS = {
    **dict.fromkeys(("U64", "C64"), 64),
    "U32": 32,
    "U16": 16,
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor's bytes lie: file offsets [start, stop)."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name, after checking that the header describes the file exactly.

    Raises CheckpointError for a truncated file, a header that is no header, and offsets that
    overlap, leave gaps, leave the file or contradict dtype and shape.
    """
    try:
        with path.open("rb") as file:
            file_bytes = path.stat().st_size
            length = _header_length(path, file.read(LENGTH_BYTES), file_bytes)
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    header = parse_json_object(text, origin=f"The header of {path}")
    header.pop(METADATA_KEY, None)
    data_start = LENGTH_BYTES + length
    tensors = {name: _entry(path, name, claim, data_start) for name, claim in header.items()}
    _check_coverage(path, list(tensors.values()), data_start, file_bytes)
    return tensors


def stored_dtype(entry: StoredTensor) -> torch.dtype:
    """CheckpointError where torch has none such."""
    if entry.dtype not in TORCH_DTYPES:
        raise CheckpointError(
            f"{entry.path}: tensor {entry.name} has dtype {entry.dtype}, which is not supported. "
            "Start from the checkpoint in BF16, FP16 or FP32."
        )
    return TORCH_DTYPES[entry.dtype]


#: As read_tensor, wherever it puts the tensor.
TensorReader = Callable[[StoredTensor, Sequence[range] | None], Tensor]


def read_tensor(
    entry: StoredTensor, rows: Sequence[range] | None = None, *, pinned: bool = False
) -> Tensor:
    """The tensor, or these ranges of its rows one after the other, in freshly allocated memory.

    Reading copies instead of mapping: a file that shrinks meanwhile gives an error instead of
    killing the process, and the memory goes when the tensor goes. pinned: memory that a GPU copies
    from by itself; torch keeps it for the next tensor.
    """
    dtype = stored_dtype(entry)
    if rows is None:
        spans = [(entry.start, entry.stop)]
        shape = entry.shape
    else:
        row_bytes = math.prod(entry.shape[1:]) * dtype.itemsize
        spans = [
            (entry.start + r.start * row_bytes, entry.start + r.stop * row_bytes) for r in rows
        ]
        shape = (sum(len(r) for r in rows), *entry.shape[1:])
    result = torch.empty(shape, dtype=dtype, pin_memory=pinned)
    _read_spans(entry, spans, result)
    return result


def _read_spans(entry: StoredTensor, spans: list[tuple[int, int]], into: Tensor) -> None:
    buffer = into.view(-1).view(torch.uint8).numpy().data
    position = 0
    try:
        with entry.path.open("rb", buffering=0) as file:
            for start, stop in spans:
                file.seek(start)
                end = position + stop - start
                while position < end:
                    # One call moves at most 2 GiB, and may move less.
                    count = file.readinto(buffer[position:end])
                    if not count:
                        raise CheckpointError(
                            f"{entry.path} ends inside tensor {entry.name}: "
                            "it was shortened while it was read. Fetch it again."
                        )
                    position += count
    except OSError as error:
        raise CheckpointError(f"{entry.path} cannot be read: {error.strerror}.") from error


def _header_length(path: Path, prefix: bytes, file_bytes: int) -> int:
    if len(prefix) < LENGTH_BYTES:
        raise CheckpointError(
            f"{path} is {file_bytes} bytes long, too short for a safetensors file: "
            "the download or copy broke off. Fetch it again."
        )
    if prefix == b"version ":
        raise CheckpointError(
            f"{path} is a git-lfs pointer and not the weights themselves. "
            "Run `git lfs pull` in its folder, or download the file."
        )
    length = int.from_bytes(prefix, "little")
    if length > min(MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES):
        raise CheckpointError(
            f"{path} claims a header of {length} bytes in a file of {file_bytes}: "
            "it is truncated or no safetensors file. Fetch it again."
        )
    return length


def _entry(path: Path, name: str, claim: Any, data_start: int) -> StoredTensor:
    fields = claim if isinstance(claim, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and _are_counts(shape) and _are_counts(offsets, length=2)):
        raise _damaged(path, f"tensor {name} has no proper dtype, shape and data_offsets")
    bits = _bits(dtype)
    if bits is None:
        raise CheckpointError(
            f"{path}: tensor {name} has dtype {dtype}, which safetensors does not know here. "
            "Start from the checkpoint in BF16, FP16 or FP32."
        )
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * bits:
        raise _damaged(
            path, f"tensor {name} ({dtype} {shape}) cannot take the {end - begin} bytes it claims"
        )
    return StoredTensor(
        name=name,
        path=path,
        dtype=dtype,
        shape=tuple(shape),
        start=data_start + begin,
        stop=data_start + end,
    )


def _bits(dtype: str) -> int | None:
    if dtype in TORCH_DTYPES:
        return TORCH_DTYPES[dtype].itemsize * 8
    return _OTHER_BITS.get(dtype)


def _are_counts(value: Any, length: int | None = None) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and (length is None or len(value) == length)
        and all(
            isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value
        )
    )


def _check_coverage(
    path: Path, tensors: list[StoredTensor], data_start: int, file_bytes: int
) -> None:
    position = data_start
    for tensor in sorted(tensors, key=lambda entry: (entry.start, entry.stop)):
        if tensor.start != position:
            relation = "overlaps the one before" if tensor.start < position else "leaves a gap"
            raise _damaged(path, f"tensor {tensor.name} {relation}")
        position = tensor.stop
    if position > file_bytes:
        raise CheckpointError(
            f"{path} is truncated: its header describes {position} bytes, the file has "
            f"{file_bytes}. The download or copy broke off: fetch it again."
        )
    if position < file_bytes:
        raise _damaged(path, f"{file_bytes - position} bytes at the end belong to no tensor")


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged: its header says that {what}. Fetch the file again, or save it anew."
    )
