"""Gemma 2: unit-offset norms before and after each half, soft caps, a window in every other layer.

It calls the norm before the MLP `pre_feedforward_layernorm`, and `post_attention_layernorm` is the
norm on attention's output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from awqkit.checkpoint.canonical import ATTENTION_OUTPUT_NORM, MLP_OUTPUT_NORM
from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.errors import UnsupportedModelError
from awqkit.checkpoint.families.config_fields import ConfigFields
from awqkit.checkpoint.families.family import Family, renamed
from awqkit.checkpoint.families.llama import read_llama_config
from awqkit.checkpoint.families.windows import read_layer_types, windows_of

#: What the family means where config.json does not say.
DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
#: A soft cap that is written as null is off; one that is not written is this.
SOFT_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
#: Every second layer sees everything.
PATTERN = 2

locate = renamed(
    {
        "post_attention_layernorm.": "pre_feedforward_layernorm.",
        f"{ATTENTION_OUTPUT_NORM}.": "post_attention_layernorm.",
        f"{MLP_OUTPUT_NORM}.": "post_feedforward_layernorm.",
    }
)


def read_gemma2_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Map a config.json of `model_type` gemma2."""
    return read_gemma_config(DEFAULTS | SOFT_CAPS | dict(raw), pattern=PATTERN)


def read_gemma_config(raw: Mapping[str, Any], *, pattern: int) -> DecoderConfig:
    """What the generations share. pattern: one layer in so many has no window."""
    fields = ConfigFields(raw)
    if fields.text("hidden_activation") not in ("gelu_pytorch_tanh", "gelu_tanh"):
        raise UnsupportedModelError(
            f"config.json: hidden_activation is {fields.text('hidden_activation')!r}; this family "
            "is supported with 'gelu_pytorch_tanh' only."
        )
    if fields.flag("use_bidirectional_attention", default=False):
        raise UnsupportedModelError(
            "config.json: use_bidirectional_attention is set; such a model encodes texts and does "
            "not generate them. Use a variant with causal attention."
        )
    # `hidden_act` is a left-over that the models do not read.
    config = read_llama_config(dict(raw) | {"hidden_act": "silu"})
    layers = range(config.num_layers)
    sliding = read_layer_types(fields, config.num_layers)
    if sliding is None:
        sliding = [(layer + 1) % pattern != 0 for layer in layers]
    return dataclasses.replace(
        config,
        activation="gelu_tanh",
        mlp_bias=False,
        norm_unit_offset=True,
        post_norms=True,
        embedding_scale=config.hidden_size**0.5,
        attention_scale=fields.number("query_pre_attn_scalar") ** -0.5,
        attention_softcap=fields.optional_number("attn_logit_softcapping"),
        final_softcap=fields.optional_number("final_logit_softcapping"),
        windows=windows_of(sliding, fields.optional_integer("sliding_window")),
    )


GEMMA2 = Family(
    name="Gemma 2",
    model_types=("gemma2",),
    read_config=read_gemma2_config,
    locate=locate,
    locate_written=locate,
)
