"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and windows in the upper layers if asked."""

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
DEFAULTS = {"max_position_embeddings": 32768, "bos_token_id": None, "eos_token_id": None}
DEFAULT_WINDOW = 4096
DEFAULT_WINDOW_LAYERS = 28


def read_qwen2_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Map a config.json of `model_type` qwen2."""
    config = read_llama_config(DEFAULTS | dict(raw))
    return dataclasses.replace(
        config,
        qkv_bias=True,
        o_bias=False,
        mlp_bias=False,
        windows=read_upper_windows(ConfigFields(raw), config.num_layers),
    )


def read_upper_windows(fields: ConfigFields, num_layers: int) -> tuple[int | None, ...]:
    """The windows where `use_sliding_window` is set: in the layers from `max_window_layers` on, or
    where `layer_types` says."""
    if not fields.flag("use_sliding_window", default=False):
        return ()
    if fields.has("sliding_window"):
        window = fields.optional_integer("sliding_window")
    else:
        window = DEFAULT_WINDOW
    first = fields.integer("max_window_layers", DEFAULT_WINDOW_LAYERS)
    sliding = read_layer_types(fields, num_layers)
    return windows_of(sliding or [layer >= first for layer in range(num_layers)], window)


QWEN2 = Family(name="Qwen2 and Qwen2.5", model_types=("qwen2",), read_config=read_qwen2_config)
