"""Reading and writing of model folders: the one bridge between quantizer and runtime."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from awqkit.checkpoint.config_file import read_decoder_config
    from awqkit.checkpoint.decoder_config import DecoderConfig, ExpertsConfig, RopeConfig
    from awqkit.checkpoint.errors import (
        AwqkitError,
        CheckpointError,
        ConversationError,
        OutputError,
        UnsupportedModelError,
    )
    from awqkit.checkpoint.packed_weight import PackedWeight, pack_weight
    from awqkit.checkpoint.quantized_weight import QuantizedWeight
    from awqkit.checkpoint.reader import Checkpoint, open_checkpoint
    from awqkit.checkpoint.writer import refuse_occupied, write_checkpoint

#: Module that defines it -> names; imported on first use: commands that read none of a checkpoint's
#: tensors need its errors and layout, and not torch.
_DEFINED = {
    "config_file": ("read_decoder_config",),
    "decoder_config": ("DecoderConfig", "ExpertsConfig", "RopeConfig"),
    "errors": (
        "AwqkitError",
        "CheckpointError",
        "ConversationError",
        "OutputError",
        "UnsupportedModelError",
    ),
    "packed_weight": ("PackedWeight", "pack_weight"),
    "quantized_weight": ("QuantizedWeight",),
    "reader": ("Checkpoint", "open_checkpoint"),
    "writer": ("refuse_occupied", "write_checkpoint"),
}
_EXPORTS = {name: module for module, names in _DEFINED.items() for name in names}

__all__ = [
    "AwqkitError",
    "Checkpoint",
    "CheckpointError",
    "ConversationError",
    "DecoderConfig",
    "ExpertsConfig",
    "OutputError",
    "PackedWeight",
    "QuantizedWeight",
    "RopeConfig",
    "UnsupportedModelError",
    "open_checkpoint",
    "pack_weight",
    "read_decoder_config",
    "refuse_occupied",
    "write_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
