"""Qwen1.5-MoE and Qwen2-MoE: Qwen2 with experts, one of them shared by all tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from awqkit.checkpoint.canonical import ROUTER
from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.families.config_fields import ConfigFields
from awqkit.checkpoint.families.experts import read_experts
from awqkit.checkpoint.families.family import Family, renamed
from awqkit.checkpoint.families.qwen2 import (
    DEFAULT_WINDOW,
    DEFAULT_WINDOW_LAYERS,
    read_qwen2_config,
)
from awqkit.checkpoint.families.windows import read_layer_types, windows_of

locate = renamed({f"{ROUTER}.": "mlp.gate."})


def read_qwen2_moe_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Map a config.json of `model_type` qwen2_moe. `intermediate_size` is that of dense layers."""
    fields, config = ConfigFields(raw), read_qwen2_config(raw)
    experts = read_experts(
        fields,
        config.num_layers,
        count=fields.integer("num_experts", 60),
        norm_topk_prob=fields.flag("norm_topk_prob", default=False),
        intermediate_size=fields.integer("moe_intermediate_size", 1408),
        shared_intermediate_size=fields.integer("shared_expert_intermediate_size", 5632),
    )
    return dataclasses.replace(
        config,
        qkv_bias=fields.flag("qkv_bias", default=True),
        windows=_read_windows(fields, config.num_layers),
        experts=experts,
    )


def _read_windows(fields: ConfigFields, num_layers: int) -> tuple[int | None, ...]:
    """Where `use_sliding_window` is set: in every other layer below `max_window_layers`."""
    if not fields.flag("use_sliding_window", default=False):
        return ()
    window = fields.integer("sliding_window", DEFAULT_WINDOW)
    last = fields.integer("max_window_layers", DEFAULT_WINDOW_LAYERS)
    sliding = read_layer_types(fields, num_layers)
    if sliding is None:
        sliding = [layer % 2 == 0 and layer < last for layer in range(num_layers)]
    return windows_of(sliding, window)


QWEN2_MOE = Family(
    name="Qwen2-MoE",
    model_types=("qwen2_moe",),
    read_config=read_qwen2_moe_config,
    locate=locate,
    locate_written=locate,
)
