"""Writing of a 4-bit checkpoint, tensor by tensor, as a folder that appears whole or not at all."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from awqkit.checkpoint.canonical import EMBEDDING, canonical_shapes
from awqkit.checkpoint.errors import OutputError
from awqkit.checkpoint.families import find_family
from awqkit.checkpoint.layout import is_quantizable
from awqkit.checkpoint.packing import PackedFormat, pack, packed_shapes
from awqkit.checkpoint.quantization_config import CONFIG_KEYS, write_quantization
from awqkit.checkpoint.quantized_weight import QuantizedWeight
from awqkit.checkpoint.reader import CONFIG_FILE, Checkpoint
from awqkit.checkpoint.shard_writer import MAX_SHARD_BYTES, ShardWriter, header_room
from awqkit.checkpoint.staging import refuse_occupied, reporting_output_errors, staged_folder

__all__ = ["refuse_occupied", "write_checkpoint"]

Documents = Mapping[str, str]
NO_DOCUMENTS: Documents = MappingProxyType({})


def write_checkpoint(
    out: Path,
    weights: Iterable[tuple[str, Tensor | QuantizedWeight]],
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
    Raises OutputError when `out` is occupied or the system refuses to write (a full disk); then
    nothing is left behind.
    """
    out = Path(out).expanduser().resolve()
    with staged_folder(out) as stage:
        _refuse_small_disk(stage, source, out)
        _carry_tokenizer(stage, source, out)
        dense = _write_weights(stage, weights, source, format, max_shard_bytes, out)
        config = _written_config(source, format, dense)
        extra = documents() if callable(documents) else documents
        with reporting_output_errors(out):
            for name, text in {CONFIG_FILE: json.dumps(config, indent=2) + "\n", **extra}.items():
                (stage / name).write_text(text, encoding="utf-8")


def _carry_tokenizer(stage: Path, source: Checkpoint, out: Path) -> None:
    # First, since a tokenizer that cannot be carried over should not waste the long work.
    from awqkit.checkpoint.tokenizer import carry_tokenizer

    with reporting_output_errors(out):
        carry_tokenizer(source.folder, stage, source.config)


def _write_weights(
    stage: Path,
    weights: Iterable[tuple[str, Tensor | QuantizedWeight]],
    source: Checkpoint,
    format: PackedFormat,
    max_shard_bytes: int,
    out: Path,
) -> dict[str, Tensor]:
    """Write all weights and return an empty tensor of the right dtype for each dense one."""
    shapes = canonical_shapes(source.config)
    room = header_room(_header_names(shapes, format))
    shards = ShardWriter(stage, room=room, max_shard_bytes=max_shard_bytes)
    dense: dict[str, Tensor] = {}
    missing = set(shapes)
    try:
        for name, weight in weights:
            _require_expected(name, weight, shapes, missing)
            missing.remove(name)
            if isinstance(weight, Tensor):
                dense[name] = weight.new_empty(0)
            with reporting_output_errors(out):
                for stored_name, tensor in _stored(name, weight, format).items():
                    shards.add(stored_name, tensor)
        if missing:
            raise ValueError(f"write_checkpoint was not given {', '.join(sorted(missing))}")
        with reporting_output_errors(out):
            shards.finish()
    finally:
        shards.abandon()
    return dense


def _stored(name: str, weight: Tensor | QuantizedWeight, format: PackedFormat) -> dict[str, Tensor]:
    if isinstance(weight, Tensor):
        return {name: weight}
    stem = name.removesuffix("weight")
    return {stem + suffix: tensor for suffix, tensor in pack(weight, format).items()}


def _header_names(shapes: Mapping[str, tuple[int, ...]], format: PackedFormat) -> list[str]:
    """The stored names if every linear of the blocks is packed, which takes the most room."""
    suffixes = packed_shapes(format, 0, 0)
    return [
        stored
        for name, shape in shapes.items()
        for stored in (
            [name.removesuffix("weight") + suffix for suffix in suffixes]
            if _is_block_linear(name, shape)
            else [name]
        )
    ]


def _is_block_linear(name: str, shape: tuple[int, ...]) -> bool:
    return name.startswith("model.layers.") and len(shape) == 2


def _require_expected(
    name: str,
    weight: Tensor | QuantizedWeight,
    shapes: Mapping[str, tuple[int, ...]],
    missing: set[str],
) -> None:
    if name not in missing:
        raise ValueError(f"write_checkpoint was given {name}, which is unknown or came twice")
    shape = weight.codes.shape if isinstance(weight, QuantizedWeight) else weight.shape
    if tuple(shape) != shapes[name]:
        raise ValueError(f"write_checkpoint was given {name} as {tuple(shape)}, not {shapes[name]}")


def _written_config(
    source: Checkpoint, format: PackedFormat, dense: Mapping[str, Tensor]
) -> dict[str, Any]:
    config = find_family(source.raw_config).written_config(source.raw_config)
    for key in (*CONFIG_KEYS, "auto_map"):
        config.pop(key, None)
    dtype_key = "dtype" if "dtype" in config else "torch_dtype"
    config[dtype_key] = str(dense[EMBEDDING].dtype).removeprefix("torch.")
    config["quantization_config"] = write_quantization(format, _dense_modules(source, dense))
    return config


def _dense_modules(source: Checkpoint, dense: Mapping[str, Tensor]) -> list[str]:
    """Linears left unquantized. The head is named even where it is tied: engines ask by name."""
    linears = [
        name.removesuffix(".weight")
        for name, shape in canonical_shapes(source.config).items()
        if name in dense and _is_block_linear(name, shape)
    ]
    return [*linears, "lm_head"]


def _refuse_small_disk(stage: Path, source: Checkpoint, out: Path) -> None:
    """Fail before the work and not after it. The estimate is a lower bound."""
    needed = 0
    for name, shape in canonical_shapes(source.config).items():
        count = math.prod(shape)
        packed = _is_block_linear(name, shape) and is_quantizable(shape[0], shape[1])
        needed += count // 2 if packed else count * 2
    free = shutil.disk_usage(stage).free
    if free < needed:
        raise OutputError(
            f"The disk is too full for {out}: it needs at least {_readable(needed)}, "
            f"{_readable(free)} are free. Free some space, or name a folder on another disk."
        )


def _readable(count: int) -> str:
    unit, divisor = ("MB", 1e6) if count < 1e9 else ("GB", 1e9)
    return f"{count / divisor:.1f} {unit}"
