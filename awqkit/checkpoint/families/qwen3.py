"""Qwen3: Llama with a norm over each head of q and k, and a head_dim of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.families.config_fields import ConfigFields
from awqkit.checkpoint.families.family import Family
from awqkit.checkpoint.families.llama import read_llama_config
from awqkit.checkpoint.families.qwen2 import DEFAULTS as QWEN2_DEFAULTS
from awqkit.checkpoint.families.qwen2 import read_upper_windows

#: What the family means where config.json does not say.
DEFAULTS = QWEN2_DEFAULTS | {"head_dim": 128}


def read_qwen3_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Map a config.json of `model_type` qwen3. `attention_bias` covers q, k, v and o."""
    config = read_llama_config(DEFAULTS | dict(raw))
    return dataclasses.replace(
        config,
        mlp_bias=False,
        qk_norm=True,
        windows=read_upper_windows(ConfigFields(raw), config.num_layers),
    )


QWEN3 = Family(name="Qwen3", model_types=("qwen3",), read_config=read_qwen3_config)
