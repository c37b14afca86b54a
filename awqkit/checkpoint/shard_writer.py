"""Tensors streamed into safetensors files of bounded size, without holding a file in memory.

The header comes first in a file but is known last. Its space is reserved and then padded with
blanks, which the format allows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from awqkit.checkpoint.safetensors_file import DTYPE_NAMES, LENGTH_BYTES, METADATA_KEY
from awqkit.checkpoint.shards import INDEX_FILE, SINGLE_FILE

MAX_SHARD_BYTES = 2 * 2**30
#: Tensors start at multiples of this, so that readers can map any dtype in place.
ALIGNMENT = 8
#: Room for one header entry besides the name: dtype, two sizes, two offsets, punctuation.
_ENTRY_BYTES = 112
_METADATA = {"format": "pt"}


def header_room(names: list[str]) -> int:
    """Bytes that the header of a file with (some of) these tensors can take at most."""
    size = sum(len(json.dumps(name)) + _ENTRY_BYTES for name in names)
    return -(-(size + len(json.dumps({METADATA_KEY: _METADATA}))) // ALIGNMENT) * ALIGNMENT


class _Shard:
    """One open file. Tensors of odd sizes are kept to its end, where they misalign nothing."""

    def __init__(self, path: Path, room: int) -> None:
        self.path = path
        self._room = room
        self._header: dict[str, Any] = {METADATA_KEY: _METADATA}
        self._odd: list[tuple[str, Tensor]] = []
        self._position = 0
        self._odd_bytes = 0
        # Unbuffered, so that closing after a full disk has nothing left to write and to fail at.
        self._file = path.open("wb", buffering=0)
        self._file.seek(LENGTH_BYTES + room)

    @property
    def names(self) -> list[str]:
        return [name for name in self._header if name != METADATA_KEY]

    @property
    def data_bytes(self) -> int:
        return self._position + self._odd_bytes

    def has_room_for(self, tensor: Tensor, limit: int) -> bool:
        taken = LENGTH_BYTES + self._room + self.data_bytes
        return self.data_bytes == 0 or taken + tensor.nbytes <= limit

    def add(self, name: str, tensor: Tensor) -> None:
        if tensor.nbytes % ALIGNMENT:
            self._odd.append((name, tensor))
            self._odd_bytes += tensor.nbytes
        else:
            self._write(name, tensor)

    def finish(self) -> None:
        # Wider elements first: each then starts at a multiple of its own width.
        for name, tensor in sorted(self._odd, key=lambda item: -item[1].dtype.itemsize):
            self._write(name, tensor)
        self._odd_bytes = 0
        text = json.dumps(self._header, separators=(",", ":")).encode().ljust(self._room)
        if len(text) > self._room:
            raise ValueError(f"the header of {self.path.name} outgrew the room left for it")
        self._file.seek(0)
        self._write_bytes(memoryview(len(text).to_bytes(LENGTH_BYTES, "little") + text))
        self._file.close()

    def abandon(self) -> None:
        self._file.close()

    def _write(self, name: str, tensor: Tensor) -> None:
        end = self._position + tensor.nbytes
        self._header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._position, end],
        }
        self._write_bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        self._position = end

    def _write_bytes(self, data: memoryview) -> None:
        # One call writes at most 2 GiB, and may write less.
        while len(data):
            data = data[self._file.write(data) :]


class ShardWriter:
    """Writes tensors into `folder` as model.safetensors, or as numbered shards with their index.

    room: header_room() of everything that may be added.  max_shard_bytes: the largest file, unless
    one tensor alone is larger.
    """

    def __init__(self, folder: Path, *, room: int, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        self._folder = folder
        self._room = room
        self._max_shard_bytes = max_shard_bytes
        self._shards: list[_Shard] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor (any device); it is not kept."""
        tensor = tensor.cpu()
        if not self._shards or not self._shards[-1].has_room_for(tensor, self._max_shard_bytes):
            self._start_shard()
        self._shards[-1].add(name, tensor)

    def finish(self) -> None:
        """Close the last file, name the files by their count, write the index if they are many."""
        self._shards[-1].finish()
        if len(self._shards) == 1:
            self._shards[0].path.rename(self._folder / SINGLE_FILE)
            return
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(self._shards, start=1):
            name = f"model-{number:05d}-of-{len(self._shards):05d}.safetensors"
            shard.path.rename(self._folder / name)
            weight_map |= dict.fromkeys(shard.names, name)
        total = sum(shard.data_bytes for shard in self._shards)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (self._folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")

    def abandon(self) -> None:
        """Close what is open, after a failure."""
        for shard in self._shards:
            shard.abandon()

    def _start_shard(self) -> None:
        if self._shards:
            self._shards[-1].finish()
        path = self._folder / f"shard-{len(self._shards)}.safetensors"
        self._shards.append(_Shard(path, self._room))
