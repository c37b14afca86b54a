"""Reading and writing of model folders: the one bridge between quantizer and runtime."""

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
from awqkit.checkpoint.reader import Checkpoint, open_checkpoint, read_decoder_config
from awqkit.checkpoint.writer import refuse_occupied, write_checkpoint

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
