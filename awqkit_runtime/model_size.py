"""What the weights of a model take in memory, from its files or from its config.json alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from awqkit.checkpoint import DecoderConfig, open_checkpoint, read_decoder_config
from awqkit.checkpoint.hub import resolve_source
from awqkit.checkpoint.json_file import read_json_object
from awqkit.checkpoint.quantization_config import read_quantization
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.parallel.shares import shard_config
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.models.footprint import BitsOf, loaded_bytes, packable
from awqkit_runtime.models.loader import resolve_dtype

#: "dense": all weights in the model's dtype.
WeightForm = Literal["dense", "int4"]


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A model that is planned for."""

    config: DecoderConfig
    form: WeightForm
    #: Of the codes of each matrix.
    bits_of: BitsOf
    #: From config.json alone, as there are no weights.
    estimated: bool
    #: Processes that share it.
    ranks: int = 1

    @property
    def local(self) -> DecoderConfig:
        """The decoder that each rank runs; ConfigError where so many cannot share the model."""
        return shard_config(self.config, self.ranks)

    def weights(self, placement: Placement) -> int:
        """Bytes of the loaded weights, of one rank."""
        return loaded_bytes(self.local, self.bits_of, placement)

    def other_form(self) -> ModelSize:
        """The same model quantized, or as it was before."""
        other: WeightForm = "dense" if self.form == "int4" else "int4"
        return replace(_size_of(self.config, other), ranks=self.ranks)


def read_model_size(source: str | Path, model_format: str = "auto") -> ModelSize:
    """Of a folder with weights, or of one with only a config.json, or of a hub id.

    Of a hub id nothing but config.json is fetched. model_format: what a checkpoint must be, or
    what to plan for where there are no weights. Raises CheckpointError, UnsupportedModelError.
    """
    if not any(Path(source).expanduser().glob("*.safetensors")):
        return _estimate(resolve_source(source, files=("config.json",)), model_format)
    checkpoint = open_checkpoint(source, model_format=model_format)
    return ModelSize(
        config=checkpoint.config,
        form="dense" if checkpoint.format == "hf" else "int4",
        bits_of=checkpoint.bits,
        estimated=False,
    )


def place(config: DecoderConfig, engine: EngineConfig, device: torch.device) -> Placement:
    """How this model's weights would be loaded onto a device, which need not be here."""
    return Placement(device=device, dtype=resolve_dtype(config, engine.dtype, device))


def _estimate(folder: Path, model_format: str) -> ModelSize:
    config = read_decoder_config(folder)
    if model_format == "auto":
        stored = read_quantization(read_json_object(folder / "config.json"))
        model_format = "hf" if stored is None else stored.format
    return _size_of(config, "dense" if model_format == "hf" else "int4")


def _size_of(config: DecoderConfig, form: WeightForm) -> ModelSize:
    return ModelSize(
        config=config,
        form=form,
        bits_of=packable(config) if form == "int4" else lambda name: None,
        estimated=True,
    )
