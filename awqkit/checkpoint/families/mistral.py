"""Mistral: Llama with a window over the keys in every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.families.config_fields import ConfigFields
from awqkit.checkpoint.families.family import Family
from awqkit.checkpoint.families.llama import read_llama_config
from awqkit.checkpoint.families.windows import read_layer_types, windows_of

#: What the family means where config.json does not say.
DEFAULTS = {"num_key_value_heads": 8, "max_position_embeddings": 4096 * 32, "sliding_window": 4096}


def read_mistral_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Map a config.json of `model_type` mistral. `sliding_window: null` means no window."""
    fields = ConfigFields(DEFAULTS | dict(raw))
    config = read_llama_config(DEFAULTS | dict(raw))
    window = fields.optional_integer("sliding_window")
    sliding = read_layer_types(fields, config.num_layers) or [True] * config.num_layers
    return dataclasses.replace(
        config,
        # Keys that Llama knows and Mistral does not.
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        windows=windows_of(sliding, window),
    )


MISTRAL = Family(name="Mistral", model_types=("mistral",), read_config=read_mistral_config)
