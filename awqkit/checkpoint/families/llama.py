"""Llama 1, 2 and 3, and every model saved under its type. Its names are the canonical ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.families.config_fields import ConfigFields
from awqkit.checkpoint.families.family import (
    Family,
    read_dtype,
    read_token_ids,
    require_silu,
)
from awqkit.checkpoint.families.rope import read_rope

DEFAULT_CONTEXT = 2048
#: Far above any model; a damaged count must not make lists of its length.
MAX_LAYERS = 10_000


def read_llama_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Map a config.json of `model_type` llama."""
    fields = ConfigFields(raw)
    require_silu(fields)
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    if num_heads < 1 or (fields.get("head_dim") is None and hidden_size % num_heads):
        raise CheckpointError(
            f"config.json: hidden_size {hidden_size} is not divisible by num_attention_heads "
            f"{num_heads}, and no head_dim says otherwise. Fetch the file again."
        )
    num_layers = fields.integer("num_hidden_layers")
    if num_layers > MAX_LAYERS:
        raise CheckpointError(
            f"config.json: num_hidden_layers is {num_layers}; no model is that deep. "
            "Fetch the file again."
        )
    attention_bias = fields.flag("attention_bias", default=False)
    context = fields.integer("max_position_embeddings", DEFAULT_CONTEXT)
    return DecoderConfig(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=fields.integer("head_dim", hidden_size // num_heads),
        intermediate_size=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        max_position_embeddings=context,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=read_rope(raw, max_position_embeddings=context),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
        dtype=read_dtype(raw),
        bos_token_id=next(iter(read_token_ids(fields, "bos_token_id", 1)), None),
        eos_token_ids=read_token_ids(fields, "eos_token_id", 2),
        pad_token_id=next(iter(read_token_ids(fields, "pad_token_id", None)), None),
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias", default=False),
    )


def as_llama(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json under Llama's own name, which every engine knows without remote code."""
    return dict(raw) | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


LLAMA = Family(
    name="Llama",
    # Aquila and XVERSE differ from Llama in nothing but the name.
    model_types=("llama", "aquila", "xverse"),
    read_config=read_llama_config,
    written_config=as_llama,
)
