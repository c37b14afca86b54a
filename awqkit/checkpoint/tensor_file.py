"""Tensors of any device in one safetensors file, a piece at a time on their way to the host."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from awqkit.checkpoint.safetensors_file import (
    DTYPE_NAMES,
    LENGTH_BYTES,
    read_header,
    read_tensor,
)

#: Bytes that are on the host at once.
PIECE_BYTES = 1 << 26
#: Headers are padded to a multiple of this, so that readers can map any dtype in place.
ALIGNMENT = 8


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> int:
    """Write a file, see it reach the disk, and return the CRC-32 of its bytes.

    tensors: of at least one dimension each.
    """
    offsets, position = {}, 0
    for name, tensor in tensors.items():
        offsets[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(offsets, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // ALIGNMENT) * ALIGNMENT)
    with path.open("wb") as file:
        checksum = 0
        for data in chain(_header(text), *(map(_pieces, tensors.values()))):
            checksum = zlib.crc32(data, checksum)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return checksum


def read_tensors(
    path: Path, rows: Mapping[str, Sequence[int]] = MappingProxyType({})
) -> dict[str, Tensor]:
    """The tensors of a file; CheckpointError where the file is damaged.

    rows: of the tensors that are named in it, these rows alone, in this order.
    """
    return {
        name: read_tensor(entry, [range(row, row + 1) for row in rows[name]])
        if name in rows
        else read_tensor(entry)
        for name, entry in read_header(path).items()
    }


def file_checksum(path: Path, start: int = 0, stop: int | None = None) -> int:
    """CRC-32 of the bytes [start, stop) of a file, as far as it has them."""
    checksum, left = 0, (path.stat().st_size if stop is None else stop) - start
    with path.open("rb") as file:
        file.seek(start)
        while left > 0 and (data := file.read(min(PIECE_BYTES, left))):
            checksum = zlib.crc32(data, checksum)
            left -= len(data)
    return checksum


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the host."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _header(text: bytes) -> Iterator[memoryview]:
    yield memoryview(len(text).to_bytes(LENGTH_BYTES, "little") + text)


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    if tensor.numel():
        for piece in tensor.split(_rows_at_once(tensor.nbytes, tensor.shape[0])):
            yield tensor_bytes(piece.cpu().contiguous())


def _rows_at_once(nbytes: int, rows: int) -> int:
    return max(1, PIECE_BYTES * rows // nbytes)
