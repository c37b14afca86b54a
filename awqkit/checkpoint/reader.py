"""A model folder as canonical tensors and one DecoderConfig."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from awqkit.checkpoint.canonical import EMBEDDING, FINAL_NORM, layer_prefix, layer_shapes
from awqkit.checkpoint.config_file import naming, read_raw_config
from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.families import find_family
from awqkit.checkpoint.families.family import read_dtype
from awqkit.checkpoint.gptq import read_sidecar, require_plain, surplus_biases
from awqkit.checkpoint.hub import model_name, resolve_source
from awqkit.checkpoint.packed_weight import PackedWeight
from awqkit.checkpoint.placement import Placement, place_tensors
from awqkit.checkpoint.quantization_config import read_quantization
from awqkit.checkpoint.quantized_weight import QuantizedWeight
from awqkit.checkpoint.safetensors_file import (
    TORCH_DTYPES,
    StoredTensor,
    TensorReader,
    read_tensor,
)
from awqkit.checkpoint.shards import find_tensors
from awqkit.checkpoint.stored_values import read_dense, read_quantized
from awqkit.checkpoint.tied_head import require_tied

Format = Literal["hf", "awq", "compressed-tensors", "gptq"]


class Checkpoint:
    """A checkpoint in canonical form. Opening it read headers only; tensors are read one by one.

    folder: where the files lie.  raw_config: config.json as written.  config: what it means.
    format: "hf" (plain), "awq", "compressed-tensors" or "gptq".
    """

    def __init__(
        self,
        *,
        folder: Path,
        raw_config: dict[str, Any],
        config: DecoderConfig,
        format: Format,
        placements: Mapping[str, Placement],
        weight_bytes: int,
    ) -> None:
        self.folder = folder
        self.raw_config = raw_config
        self.config = config
        self.format = format
        self._placements = placements
        self._weight_bytes = weight_bytes

    @property
    def name(self) -> str:
        """What the model is called; see hub.model_name."""
        return model_name(self.folder)

    def names(self) -> tuple[str, ...]:
        """Canonical names in the order of execution; a quantized linear is listed as its weight."""
        return tuple(self._placements)

    def shape(self, name: str) -> tuple[int, ...]:
        """Canonical shape, (out, in) for a linear, quantized or not."""
        return self._placement(name).shape

    def is_quantized(self, name: str) -> bool:
        return self._placement(name).packed_format is not None

    def bits(self, name: str) -> int | None:
        """Of a code, 4 or 8; None where the tensor is dense."""
        placement = self._placement(name)
        return None if placement.packed_format is None else placement.bits

    def stored_bytes(self, name: str) -> int:
        """Bytes on disk of what holds a tensor, which may be others' too."""
        return sum(entry.nbytes for entry in self._placement(name).entries.values())

    def tensor(self, name: str, read: TensorReader = read_tensor) -> Tensor:
        """A dense tensor in its stored dtype; CheckpointError if it holds NaN or infinity."""
        placement = self._placement(name)
        if placement.packed_format is not None:
            raise CheckpointError(f"{name} is stored quantized; there is no dense form of it here.")
        return read_dense(placement, read)

    def quantized(self, name: str) -> QuantizedWeight:
        """The integers and scales of a quantized linear; CheckpointError if it is dense."""
        return self.packed(name).unpack()

    def packed(self, name: str, read: TensorReader = read_tensor) -> PackedWeight:
        """The stored tensors of a quantized linear, checked; CheckpointError if it is dense."""
        return read_quantized(self._quantized_placement(name), read)

    def weight(self, name: str) -> Tensor | QuantizedWeight:
        """The tensor as it is stored, dense or quantized."""
        return self.quantized(name) if self.is_quantized(name) else self.tensor(name)

    def block(self, layer: int) -> dict[str, Tensor | QuantizedWeight]:
        """All tensors of one layer by their names within it, such as "self_attn.q_proj.weight"."""
        prefix = layer_prefix(layer)
        return {name: self.weight(prefix + name) for name in layer_shapes(self.config, layer)}

    def packed_block(self, layer: int) -> dict[str, Tensor | PackedWeight]:
        """As `block`, with the quantized linears still packed."""
        prefix = layer_prefix(layer)
        return {name: self.packed_or_dense(prefix + name) for name in self.block_names(layer)}

    def block_names(self, layer: int) -> tuple[str, ...]:
        """The names of a layer's tensors within it, a quantized linear's as its weight's."""
        return tuple(layer_shapes(self.config, layer))

    def packed_or_dense(self, name: str, read: TensorReader = read_tensor) -> Tensor | PackedWeight:
        """The tensor as it is stored, a quantized one still packed."""
        return self.packed(name, read) if self.is_quantized(name) else self.tensor(name, read)

    def weight_bytes(self) -> int:
        """Bytes of all stored tensors on disk."""
        return self._weight_bytes

    def stored_tensors(self) -> tuple[StoredTensor, ...]:
        """Where the tensors that the model consists of lie, each once."""
        entries = (e for place in self._placements.values() for e in place.entries.values())
        return tuple({(entry.path, entry.name): entry for entry in entries}.values())

    def _quantized_placement(self, name: str) -> Placement:
        placement = self._placement(name)
        if placement.packed_format is None:
            raise CheckpointError(f"{name} is stored unquantized; it has no codes.")
        return placement

    def _placement(self, name: str) -> Placement:
        placement = self._placements.get(name)
        if placement is None:
            raise KeyError(f"{name} is no canonical tensor of {self.folder}")
        return placement


def open_checkpoint(source: str | Path, *, model_format: str = "auto") -> Checkpoint:
    """Open a folder or a hub id and prove config, index, headers and shapes consistent.

    model_format: "auto", or the format that the checkpoint must have.
    Raises CheckpointError, and UnsupportedModelError for what is sound but not known.
    """
    folder = resolve_source(source)
    raw = read_raw_config(folder)
    with naming(folder):
        family = find_family(raw)
        config = family.read_config(raw)
        quantization = read_quantization(raw)
    tensors = find_tensors(folder)
    if quantization is None and (sidecar := read_sidecar(folder, tensors)) is not None:
        quantization = read_quantization({"quantization_config": sidecar})
    found: Format = "hf" if quantization is None else quantization.format
    if model_format not in ("auto", found):
        raise CheckpointError(
            f"{folder} is a checkpoint in {found!r} form, but {model_format!r} was asked for. "
            "Leave the model format at auto."
        )
    harmless = surplus_biases(tensors) if found == "gptq" else ()
    with naming(folder):
        placements = place_tensors(tensors, config, family, quantization, harmless=harmless)
        require_plain(tensors, placements)
        require_tied(tensors, config, family)
    # A quantized embedding says nothing of the others' dtype.
    dense = placements[EMBEDDING if placements[EMBEDDING].packed_format is None else FINAL_NORM]
    stored_dtype = str(TORCH_DTYPES[dense.entries[""].dtype]).removeprefix("torch.")
    return Checkpoint(
        folder=folder,
        raw_config=raw,
        config=dataclasses.replace(config, dtype=read_dtype(raw, stored_dtype)),
        format=found,
        placements=placements,
        weight_bytes=sum(entry.nbytes for entry in tensors.values()),
    )
