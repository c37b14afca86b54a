"""Phi-3, Phi-3.5 and Phi-4: Llama with fused q, k, v and fused gate and up, and LongRoPE.

Both fused matrices are kept where they are, also when they are written: engines look for them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.families.config_fields import ConfigFields
from awqkit.checkpoint.families.family import Family, Location
from awqkit.checkpoint.families.llama import read_llama_config
from awqkit.checkpoint.families.windows import windows_of

#: What the family means where config.json does not say.
DEFAULTS = {
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
}
#: Names that older files give to LongRoPE.
_LONGROPE_NAMES = ("su", "yarn")
_PART = re.compile(r"(?P<module>.*\.(?:self_attn|mlp))\.(?P<part>[qkv]|gate|up)_proj\.")


def read_phi3_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Map a config.json of `model_type` phi3."""
    raw = DEFAULTS | {key: _as_longrope(key, value) for key, value in raw.items()}
    fields = ConfigFields(raw)
    config = read_llama_config(raw)
    window = fields.optional_integer("sliding_window")
    return dataclasses.replace(
        config,
        # Keys that Llama knows and Phi-3 does not.
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        windows=windows_of([True] * config.num_layers, window),
    )


def locate(name: str, config: DecoderConfig) -> Location:
    """Where a canonical tensor lies; q, k, v and gate, up are row ranges of one matrix each."""
    match = _PART.match(name)
    if match is None:
        return Location(name=name)
    fused, sizes = (
        "gate_up_proj",
        {"gate": config.intermediate_size, "up": config.intermediate_size},
    )
    if match["part"] in "qkv":
        fused, sizes = "qkv_proj", {"q": config.q_size, "k": config.kv_size, "v": config.kv_size}
    start = 0
    for part, size in sizes.items():
        if part == match["part"]:
            break
        start += size
    return Location(
        name=f"{match['module']}.{fused}.{name[match.end() :]}",
        rows=(range(start, start + sizes[match["part"]]),),
        num_rows=sum(sizes.values()),
    )


def _as_longrope(key: str, value: Any) -> Any:
    if key not in ("rope_scaling", "rope_parameters") or not isinstance(value, dict):
        return value
    kind = value.get("rope_type", value.get("type"))
    return value | {"rope_type": "longrope"} if kind in _LONGROPE_NAMES else value


PHI3 = Family(
    name="Phi-3 and Phi-4",
    model_types=("phi3",),
    read_config=read_phi3_config,
    locate=locate,
    locate_written=locate,
)
