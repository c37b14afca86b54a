"""Mixtral: Mistral with experts in every layer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.families.config_fields import ConfigFields
from awqkit.checkpoint.families.experts import read_experts
from awqkit.checkpoint.families.family import Family, Location
from awqkit.checkpoint.families.mistral import read_mistral_config

#: What the family means where config.json does not say.
DEFAULTS = {
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
}
_ROUTER = "mlp.router."
_EXPERT = re.compile(r"mlp\.(?P<expert>experts\.\d+)\.(?P<part>gate|up|down)_proj\.")
_PARTS = {"gate": "w1", "down": "w2", "up": "w3"}


def read_mixtral_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Map a config.json of `model_type` mixtral."""
    raw = DEFAULTS | dict(raw)
    fields, config = ConfigFields(raw), read_mistral_config(raw)
    experts = read_experts(
        ConfigFields({"num_experts_per_tok": fields.integer("num_experts_per_tok")}),
        config.num_layers,
        count=fields.integer("num_local_experts"),
        norm_topk_prob=True,
        intermediate_size=config.intermediate_size,
    )
    return dataclasses.replace(config, experts=experts)


def locate(name: str, config: DecoderConfig) -> Location:
    """Where a canonical tensor lies."""
    name = name.replace(_ROUTER, "block_sparse_moe.gate.")
    return Location(
        name=_EXPERT.sub(
            lambda match: f"block_sparse_moe.{match['expert']}.{_PARTS[match['part']]}.", name
        )
    )


MIXTRAL = Family(
    name="Mixtral",
    model_types=("mixtral",),
    read_config=read_mixtral_config,
    locate=locate,
    locate_written=locate,
)
