"""Gemma 3 with a vision tower: its text part, which is a Gemma 3 under a longer name.

Written out it is the text model alone: the tower is neither quantized nor kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.families.config_fields import ConfigFields
from awqkit.checkpoint.families.family import Family, Location
from awqkit.checkpoint.families.gemma2 import locate as locate_text
from awqkit.checkpoint.families.gemma3 import read_gemma3_config

#: What the family means where text_config does not say: the published files leave much out.
DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}
#: Keys that are written beside text_config and mean the text model too.
_OUTER_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype", "dtype")


def read_gemma3_vision_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Map a config.json of `model_type` gemma3."""
    return read_gemma3_config(text_config(raw))


def text_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the text model alone, as other engines load it."""
    outer = {key: raw[key] for key in _OUTER_KEYS if raw.get(key) is not None}
    own = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    return DEFAULTS | dict(ConfigFields(raw).section("text_config")) | outer | own


def locate(name: str, config: DecoderConfig) -> Location:
    """Where a canonical tensor lies."""
    return Location(name=f"language_model.{locate_text(name, config).name}")


GEMMA3_VISION = Family(
    name="Gemma 3 with vision (its text part)",
    model_types=("gemma3",),
    read_config=read_gemma3_vision_config,
    locate=locate,
    written_config=text_config,
    locate_written=locate_text,
    left_out=re.compile(r"(vision_tower|multi_modal_projector)\."),
)
