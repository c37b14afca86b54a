"""InternLM3: Llama with biases of its own naming. Written out, the model is a Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.errors import UnsupportedModelError
from awqkit.checkpoint.families.config_fields import ConfigFields
from awqkit.checkpoint.families.family import Family
from awqkit.checkpoint.families.llama import as_llama, read_llama_config

#: What the family means where config.json does not say.
DEFAULTS = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 2,
}
_OWN_KEYS = ("auto_map", "qkv_bias", "bias")


def read_internlm3_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Map a config.json of `model_type` internlm3."""
    return read_llama_config(llama_config(raw))


def llama_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the same model as a Llama, loadable without remote code."""
    fields = ConfigFields(raw)
    # The transformers library writes Llama's keys, the family's own code the shorter ones:
    # `qkv_bias` covers q, k and v, `bias` covers o and the MLP.
    qkv_bias = fields.flag("qkv_bias", default=fields.flag("attention_bias", default=False))
    bias = fields.flag("bias", default=fields.flag("mlp_bias", default=False))
    if qkv_bias != bias:
        raise UnsupportedModelError(
            f"config.json: qkv_bias is {qkv_bias} and bias is {bias}. A Llama, which InternLM3 is "
            "read as, has biases on q, k, v and o together; this model cannot be described so."
        )
    kept = {key: value for key, value in raw.items() if key not in _OWN_KEYS}
    return as_llama(DEFAULTS | kept) | {"attention_bias": qkv_bias, "mlp_bias": bias}


INTERNLM3 = Family(
    name="InternLM3",
    model_types=("internlm3",),
    read_config=read_internlm3_config,
    written_config=llama_config,
)
