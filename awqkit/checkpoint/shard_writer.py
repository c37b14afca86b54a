"""Tensors streamed into safetensors files of bounded size, without holding a file in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from awqkit.checkpoint.shard_file import ShardFile
from awqkit.checkpoint.shards import INDEX_FILE, SINGLE_FILE

MAX_SHARD_BYTES = 2 * 2**30
_NUMBERED = re.compile(r"model-(\d{5})-of-\d{5}\.safetensors")


class ShardWriter:
    """Writes tensors into `folder` as model.safetensors, or as numbered shards with their index.

    room: header_room() of everything that may be added.  max_shard_bytes: the largest file, unless
    one tensor alone is larger.
    """

    def __init__(self, folder: Path, *, room: int, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        self._folder = folder
        self._room = room
        self._max_shard_bytes = max_shard_bytes
        self._shards: list[ShardFile] = []

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

    def close(self) -> None:
        """Close what is open; what was written stays."""
        for shard in self._shards:
            shard.close()

    def flush(self) -> None:
        """See what was written so far reach the disk."""
        for shard in self._shards:
            shard.flush()

    def state(self) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """What `restore` needs besides the files: fit for JSON, and tensors not yet written.

        Everything that was written has reached the disk when this returns.
        """
        self.flush()
        return [shard.state() for shard in self._shards], dict(
            self._shards[-1].odd if self._shards else {}
        )

    def restore(self, states: list[Mapping[str, Any]], odd: Mapping[str, Tensor]) -> None:
        """Go on from an earlier state of these files; what was written since is dropped.

        Raises OutputError where a file no longer holds what it held then.
        """
        _undo_names(self._folder)
        kept = {state["file"] for state in states}
        for path in self._folder.glob("*.safetensors"):
            if path.name not in kept:
                path.unlink()
        for number, state in enumerate(states, start=1):
            its_odd = odd if number == len(states) else {}
            self._shards.append(ShardFile.restore(self._folder, self._room, state, its_odd))

    def _start_shard(self) -> None:
        if self._shards:
            self._shards[-1].finish()
        path = self._folder / _unfinished_name(len(self._shards))
        self._shards.append(ShardFile(path, self._room))


def _unfinished_name(index: int) -> str:
    return f"shard-{index}.safetensors"


def _undo_names(folder: Path) -> None:
    """Give shards that `finish` has named already the names that they had before."""
    (folder / INDEX_FILE).unlink(missing_ok=True)
    if (folder / SINGLE_FILE).exists():
        (folder / SINGLE_FILE).rename(folder / _unfinished_name(0))
    for path in folder.glob("model-*.safetensors"):
        if match := _NUMBERED.fullmatch(path.name):
            path.rename(folder / _unfinished_name(int(match[1]) - 1))
