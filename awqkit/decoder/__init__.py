"""The decoder in plain torch: calibration runs it, and it is the runtime's slow twin."""

from awqkit.decoder.block import (
    Observer,
    attend,
    attention_half,
    block_forward,
    mlp_half,
    require_supported,
)
from awqkit.decoder.norm import rms_norm
from awqkit.decoder.rotary import apply_rotary, rotary_tables
from awqkit.decoder.state import KeyValues

__all__ = [
    "KeyValues",
    "Observer",
    "apply_rotary",
    "attend",
    "attention_half",
    "block_forward",
    "mlp_half",
    "require_supported",
    "rms_norm",
    "rotary_tables",
]
