"""One safetensors file that grows tensor by tensor and can be taken up again after a stop.

The header comes first in a file but is known last. Its space is reserved and then padded with
blanks, which the format allows.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from awqkit.checkpoint.errors import ResumeError
from awqkit.checkpoint.safetensors_file import DTYPE_NAMES, LENGTH_BYTES, METADATA_KEY
from awqkit.checkpoint.tensor_file import ALIGNMENT, file_checksum, tensor_bytes

#: Room for one header entry besides the name: dtype, two sizes, two offsets, punctuation.
_ENTRY_BYTES = 112
_METADATA = {"format": "pt"}


def header_room(names: list[str]) -> int:
    """Bytes that the header of a file with (some of) these tensors can take at most."""
    size = sum(len(json.dumps(name)) + _ENTRY_BYTES for name in names)
    return -(-(size + len(json.dumps({METADATA_KEY: _METADATA}))) // ALIGNMENT) * ALIGNMENT


class ShardFile:
    """One open file. Tensors of odd sizes are kept to its end, where they misalign nothing.

    odd: these tensors, not yet written.  data_bytes: of all tensors so far.
    """

    def __init__(self, path: Path, room: int) -> None:
        self.path = path
        self.odd: dict[str, Tensor] = {}
        self._room = room
        self._entries: dict[str, Any] = {}
        self._position = 0
        self._checksum = 0
        self._is_finished = False
        # Unbuffered, so that closing after a full disk has nothing left to write and to fail at.
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._file.seek(LENGTH_BYTES + room)

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    @property
    def data_bytes(self) -> int:
        return self._position + sum(tensor.nbytes for tensor in self.odd.values())

    def has_room_for(self, tensor: Tensor, limit: int) -> bool:
        taken = LENGTH_BYTES + self._room + self.data_bytes
        return self.data_bytes == 0 or taken + tensor.nbytes <= limit

    def add(self, name: str, tensor: Tensor) -> None:
        if tensor.nbytes % ALIGNMENT:
            self.odd[name] = tensor
        else:
            self._write(name, tensor)

    def finish(self) -> None:
        """Write what was kept back and the header, see both reach the disk, and close."""
        # Wider elements first: each then starts at a multiple of its own width.
        for name, tensor in sorted(self.odd.items(), key=lambda item: -item[1].dtype.itemsize):
            self._write(name, tensor)
        self.odd = {}
        header = {METADATA_KEY: _METADATA, **self._entries}
        text = json.dumps(header, separators=(",", ":")).encode().ljust(self._room)
        if len(text) > self._room:
            raise ValueError(f"the header of {self.path.name} outgrew the room left for it")
        self._file.seek(0)
        self._write_bytes(memoryview(len(text).to_bytes(LENGTH_BYTES, "little") + text))
        self.flush()
        self.close()
        self._is_finished = True

    def flush(self) -> None:
        """See what was written so far reach the disk."""
        if not self._file.closed:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def state(self) -> dict[str, Any]:
        """What `restore` needs besides the file itself and `odd`, fit for JSON."""
        return {
            "file": self.path.name,
            "entries": self._entries,
            "bytes": self._position,
            "checksum": self._checksum,
            "finished": self._is_finished,
        }

    @classmethod
    def restore(
        cls, folder: Path, room: int, state: Mapping[str, Any], odd: Mapping[str, Tensor]
    ) -> ShardFile:
        """The file as it was at `state`; what was written to it since is dropped.

        Raises ResumeError where the file no longer holds what it held then.
        """
        path = folder / state["file"]
        start = LENGTH_BYTES + room
        if not path.is_file():
            raise _damaged(path, "it is missing")
        if path.stat().st_size < start + state["bytes"]:
            raise _damaged(path, f"it has {path.stat().st_size} bytes, so its end was cut off")
        if file_checksum(path, start, start + state["bytes"]) != state["checksum"]:
            raise _damaged(path, "its bytes have changed")
        shard = cls(path, room)
        shard._entries = dict(state["entries"])
        shard._position, shard._checksum = state["bytes"], state["checksum"]
        shard.odd = dict(odd)
        shard._file.truncate(start + shard._position)
        shard._file.seek(start + shard._position)
        if state["finished"]:
            shard.finish()
        return shard

    def _write(self, name: str, tensor: Tensor) -> None:
        end = self._position + tensor.nbytes
        self._entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._position, end],
        }
        data = tensor_bytes(tensor.contiguous())
        self._checksum = zlib.crc32(data, self._checksum)
        self._write_bytes(data)
        self._position = end

    def _write_bytes(self, data: memoryview) -> None:
        # One call writes at most 2 GiB, and may write less.
        while len(data):
            data = data[self._file.write(data) :]


def _damaged(path: Path, what: str) -> ResumeError:
    return ResumeError(
        f"{path}, which an interrupted conversion left, is not as it was: {what}. The conversion "
        "cannot be resumed; begin it anew with --no-resume."
    )
