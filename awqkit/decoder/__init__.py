"""The decoder in plain torch: calibration runs it, and it is the runtime's slow twin."""

from awqkit.decoder.block import SITES, Site, block_forward, require_supported
from awqkit.decoder.norm import rms_norm
from awqkit.decoder.rotary import apply_rotary, rotary_tables
from awqkit.decoder.state import KeyValues

__all__ = [
    "SITES",
    "KeyValues",
    "Site",
    "apply_rotary",
    "block_forward",
    "require_supported",
    "rms_norm",
    "rotary_tables",
]
