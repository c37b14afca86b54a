"""Qwen3-MoE: Qwen3 with experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.families.config_fields import ConfigFields
from awqkit.checkpoint.families.experts import read_experts
from awqkit.checkpoint.families.family import Family
from awqkit.checkpoint.families.llama import read_llama_config
from awqkit.checkpoint.families.qwen2 import DEFAULT_WINDOW
from awqkit.checkpoint.families.qwen2 import DEFAULTS as QWEN2_DEFAULTS
from awqkit.checkpoint.families.qwen2_moe import locate
from awqkit.checkpoint.families.windows import windows_of


def read_qwen3_moe_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Map a config.json of `model_type` qwen3_moe. `intermediate_size` is that of dense layers."""
    fields, config = ConfigFields(raw), read_llama_config(QWEN2_DEFAULTS | dict(raw))
    experts = read_experts(
        fields,
        config.num_layers,
        # The transformers library may write the other name.
        count=fields.integer("num_experts", fields.integer("num_local_experts", 128)),
        norm_topk_prob=fields.flag("norm_topk_prob", default=False),
        intermediate_size=fields.integer("moe_intermediate_size", 768),
    )
    slides = fields.flag("use_sliding_window", default=False)
    window = fields.integer("sliding_window", DEFAULT_WINDOW) if slides else None
    return dataclasses.replace(
        config,
        mlp_bias=False,
        qk_norm=True,
        windows=windows_of([slides] * config.num_layers, window),
        experts=experts,
    )


QWEN3_MOE = Family(
    name="Qwen3-MoE",
    model_types=("qwen3_moe",),
    read_config=read_qwen3_moe_config,
    locate=locate,
    locate_written=locate,
)
