"""The decoder in plain torch: calibration runs it, and it is the runtime's slow twin."""

from awqkit.decoder.activation import activate
from awqkit.decoder.attention import attend
from awqkit.decoder.block import attention_half, block_forward, chosen_experts, mlp_half
from awqkit.decoder.ends import embed, final_logits, scale_embedding
from awqkit.decoder.experts import mix_experts, route
from awqkit.decoder.linear import Observer
from awqkit.decoder.norm import rms_norm
from awqkit.decoder.rotary import RotaryTables, apply_rotary, layer_ropes, rotary_tables
from awqkit.decoder.softcap import soft_cap
from awqkit.decoder.state import KeyValues

__all__ = [
    "KeyValues",
    "Observer",
    "RotaryTables",
    "activate",
    "apply_rotary",
    "attend",
    "attention_half",
    "block_forward",
    "chosen_experts",
    "embed",
    "final_logits",
    "layer_ropes",
    "mix_experts",
    "mlp_half",
    "rms_norm",
    "rotary_tables",
    "route",
    "scale_embedding",
    "soft_cap",
]
