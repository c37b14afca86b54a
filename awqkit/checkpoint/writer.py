"""Writing of a 4-bit checkpoint, tensor by tensor, as a folder that appears whole or not at all."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from awqkit.checkpoint.canonical import EMBEDDING, canonical_shapes
from awqkit.checkpoint.config_file import CONFIG_FILE
from awqkit.checkpoint.errors import OutputError
from awqkit.checkpoint.families import find_family
from awqkit.checkpoint.fingerprint import fingerprint
from awqkit.checkpoint.layout import BITS, is_quantizable
from awqkit.checkpoint.packing import PackedFormat, pack, packed_shapes
from awqkit.checkpoint.quantization_config import DENSE_BITS
from awqkit.checkpoint.quantized_weight import QuantizedWeight
from awqkit.checkpoint.reader import Checkpoint
from awqkit.checkpoint.shard_file import header_room
from awqkit.checkpoint.shard_writer import MAX_SHARD_BYTES, ShardWriter
from awqkit.checkpoint.staging import refuse_occupied, reporting_output_errors, staged_folder
from awqkit.checkpoint.verification import verify_written
from awqkit.checkpoint.written_config import is_block_linear, written_config
from awqkit.checkpoint.written_layout import Assembly, WrittenLayout

__all__ = ["CheckpointWriter", "WriterState", "refuse_occupied", "write_checkpoint"]

Weight = Tensor | QuantizedWeight
Documents = Mapping[str, str]
CPU = torch.device("cpu")
NO_DOCUMENTS: Documents = MappingProxyType({})


def write_checkpoint(
    out: Path,
    weights: Iterable[tuple[str, Weight]],
    *,
    source: Checkpoint,
    format: PackedFormat,
    documents: Documents | Callable[[], Documents] = NO_DOCUMENTS,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a checkpoint in the form that other engines load, from weights as they come.

    weights: every canonical name of `source` once, in any order; consumed one by one.
    documents: further text files by name; a callable is asked once all weights are written.
    Tokenizer and generation files come from source.folder, config.json from its configuration.
    Raises OutputError when `out` is occupied, the system refuses to write (a full disk), or the
    files do not hold what was given; then nothing is left behind.
    """
    out = Path(out).expanduser().resolve()
    with staged_folder(out) as stage:
        refuse_small_disk(stage, out, _least_bytes(source))
        writer = CheckpointWriter(
            stage, source=source, format=format, out=out, max_shard_bytes=max_shard_bytes
        )
        try:
            writer.carry_tokenizer()
            for name, weight in weights:
                writer.add(name, weight)
            writer.finish(documents() if callable(documents) else documents)
        finally:
            writer.close()


@dataclass(frozen=True, kw_only=True)
class WriterState:
    """How far a writer has come. document: fit for JSON. tensors: given, but not yet in a file."""

    document: dict[str, Any]
    tensors: dict[str, Tensor]


class CheckpointWriter:
    """Writes a checkpoint into a folder, and can go on where an earlier one stopped.

    folder: exists.  out: the name by which errors call the result.
    The order of the calls: carry_tokenizer or restore, add for every weight, finish; close always.
    """

    def __init__(
        self,
        folder: Path,
        *,
        source: Checkpoint,
        format: PackedFormat,
        out: Path,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        self._folder = folder
        self._source = source
        self._format = format
        self._out = out
        self._shapes = canonical_shapes(source.config)
        layout = WrittenLayout(source.config, find_family(source.raw_config))
        self._assembly = Assembly(layout)
        room = header_room(_header_names(layout.shapes, format))
        self._shards = ShardWriter(folder, room=room, max_shard_bytes=max_shard_bytes)
        self._dense: dict[str, str] = {}
        self._packed: dict[str, int] = {}
        self._fingerprints: dict[str, str] = {}

    def carry_tokenizer(self) -> None:
        """Write the tokenizer's files; first, since one that cannot be carried ends everything."""
        from awqkit.checkpoint.tokenizer import carry_tokenizer

        with reporting_output_errors(self._out):
            carry_tokenizer(self._source.folder, self._folder, self._source.config)

    def add(self, name: str, weight: Weight) -> None:
        """Write one weight by its canonical name; kept only until a fused matrix is complete."""
        self._require_expected(name, weight)
        self._fingerprints[name] = fingerprint(weight)
        if isinstance(weight, Tensor):
            self._dense[name] = str(weight.dtype).removeprefix("torch.")
        else:
            self._packed[name] = weight.bits
        complete = self._assembly.add(name, weight)
        if complete is None:
            return
        with reporting_output_errors(self._out):
            for stored_name, tensor in _packed(*complete, self._format).items():
                self._shards.add(stored_name, tensor)

    def flush(self) -> None:
        """See what was added so far reach the disk, but for what is kept."""
        with reporting_output_errors(self._out):
            self._shards.flush()

    def finish(self, documents: Documents, *, device: torch.device = CPU) -> None:
        """Complete the folder, then read everything back and compare it with what was given.

        device: where the comparison computes.
        """
        missing = self._shapes.keys() - self._fingerprints.keys()
        if missing:
            raise ValueError(f"write_checkpoint was not given {', '.join(sorted(missing))}")
        config = written_config(self._source, self._format, self._dense, self._packed)
        texts = {CONFIG_FILE: json.dumps(config, indent=2) + "\n", **documents}
        with reporting_output_errors(self._out):
            self._shards.finish()
            for name, text in texts.items():
                (self._folder / name).write_text(text, encoding="utf-8")
        verify_written(self._folder, self._fingerprints, out=self._out, device=device)

    def state(self) -> WriterState:
        """How far the writing has come; all of it has reached the disk."""
        with reporting_output_errors(self._out):
            shards, pending = self._shards.state()
        document = {
            "shards": shards,
            "dense": self._dense,
            "packed": self._packed,
            "fingerprints": self._fingerprints,
        }
        return WriterState(document=document, tensors=pending)

    def restore(self, state: WriterState) -> None:
        """Go on from `state`. Raises OutputError where the files no longer hold what they held."""
        with reporting_output_errors(self._out):
            self._shards.restore(state.document["shards"], state.tensors)
        self._dense = dict(state.document["dense"])
        self._packed = dict(state.document["packed"])
        self._fingerprints = dict(state.document["fingerprints"])

    def close(self) -> None:
        """Close the files, whatever happened."""
        self._shards.close()

    def _require_expected(self, name: str, weight: Weight) -> None:
        if name not in self._shapes or name in self._fingerprints:
            raise ValueError(f"write_checkpoint was given {name}, which is unknown or came twice")
        shape = weight.codes.shape if isinstance(weight, QuantizedWeight) else weight.shape
        if tuple(shape) != self._shapes[name]:
            raise ValueError(
                f"write_checkpoint was given {name} as {tuple(shape)}, not {self._shapes[name]}"
            )
        if name == EMBEDDING and isinstance(weight, QuantizedWeight) and self._format == "awq":
            raise ValueError(f"write_checkpoint was given {name} quantized, which awq cannot hold")


def _packed(name: str, weight: Weight, format: PackedFormat) -> dict[str, Tensor]:
    if isinstance(weight, Tensor):
        return {name: weight}
    stem = name.removesuffix("weight")
    return {stem + suffix: tensor for suffix, tensor in pack(weight, format).items()}


def _header_names(shapes: Mapping[str, tuple[int, ...]], format: PackedFormat) -> list[str]:
    """The stored names if every matrix is packed, which takes the most room."""
    suffixes = packed_shapes(format, 0, 0)
    return [
        stored
        for name, shape in shapes.items()
        for stored in (
            [name.removesuffix("weight") + suffix for suffix in suffixes]
            if len(shape) == 2
            else [name]
        )
    ]


def _least_bytes(source: Checkpoint) -> int:
    """A lower bound of what a quantized checkpoint of these shapes takes."""
    least = 0
    for name, shape in canonical_shapes(source.config).items():
        packed = is_block_linear(name, shape) and is_quantizable(shape[0], shape[1])
        bits = BITS if packed else source.bits(name) or DENSE_BITS
        least += math.prod(shape) * bits // 8
    return least


def refuse_small_disk(folder: Path, out: Path, needed: int) -> None:
    """Raise OutputError before the work and not after it. needed: bytes, at least."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"The disk is too full for {out}: it needs at least {_readable(needed)}, "
            f"{_readable(free)} are free. Free some space, or name a folder on another disk."
        )


def _readable(count: int) -> str:
    unit, divisor = ("MB", 1e6) if count < 1e9 else ("GB", 1e9)
    return f"{count / divisor:.1f} {unit}"
