"""InternLM2 and InternLM2.5: Llama under other names, with q, k and v fused into one `wqkv`.

The fused rows are (key-value head, queries per key-value head + 2, head_dim): for every key-value
head its queries, then its key, then its value. Written out, the model is a Llama.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.families.config_fields import ConfigFields
from awqkit.checkpoint.families.family import Family, Location
from awqkit.checkpoint.families.llama import as_llama, read_llama_config

_QKV = re.compile(r"(?P<layer>model\.layers\.\d+\.)self_attn\.(?P<part>[qkv])_proj\.")
_RENAMED = {
    "model.embed_tokens.": "model.tok_embeddings.",
    "lm_head.": "output.",
    "self_attn.o_proj.": "attention.wo.",
    "mlp.gate_proj.": "feed_forward.w1.",
    "mlp.up_proj.": "feed_forward.w3.",
    "mlp.down_proj.": "feed_forward.w2.",
    "input_layernorm.": "attention_norm.",
    "post_attention_layernorm.": "ffn_norm.",
}
#: Keys of InternLM2's remote code that mean nothing, or something else, in a Llama config.
_OWN_KEYS = ("auto_map", "attn_implementation", "bias", "rope_scaling", "head_dim")


def read_internlm2_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Map a config.json of `model_type` internlm2. `bias` covers q, k, v and o."""
    return read_llama_config(llama_config(raw))


def llama_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the same model as a Llama, loadable without remote code."""
    kept = {key: value for key, value in raw.items() if key not in _OWN_KEYS}
    return as_llama(kept) | {
        # The family's remote code defaults to biases.
        "attention_bias": ConfigFields(raw).flag("bias", default=True),
        "mlp_bias": False,
        "rope_scaling": _both_spellings(ConfigFields(raw).section("rope_scaling")),
    }


def locate(name: str, config: DecoderConfig) -> Location:
    """Where a canonical tensor lies; q, k and v are row ranges of `wqkv`."""
    match = _QKV.match(name)
    if match:
        return Location(
            name=f"{match['layer']}attention.wqkv.{name[match.end() :]}",
            rows=_fused_rows(match["part"], config),
            num_rows=config.q_size + 2 * config.kv_size,
        )
    for canonical, own in _RENAMED.items():
        # Anchored: "input_layernorm." must not be found inside another component's name.
        name = re.sub(rf"(^|(?<=\.)){re.escape(canonical)}", own, name)
    return Location(name=name)


def _fused_rows(part: str, config: DecoderConfig) -> tuple[range, ...]:
    queries = config.queries_per_kv
    first, count = {"q": (0, queries), "k": (queries, 1), "v": (queries + 1, 1)}[part]
    group = queries + 2
    starts = [(head * group + first) * config.head_dim for head in range(config.num_kv_heads)]
    return tuple(range(start, start + count * config.head_dim) for start in starts)


def _both_spellings(scaling: Mapping[str, Any]) -> dict[str, Any] | None:
    """Older engines read the kind under `type`, newer ones under `rope_type`."""
    if not scaling:
        return None
    kind = scaling.get("rope_type", scaling.get("type"))
    return {**scaling, "type": kind, "rope_type": kind}


INTERNLM2 = Family(
    name="InternLM2 and InternLM2.5",
    model_types=("internlm2",),
    read_config=read_internlm2_config,
    locate=locate,
    written_config=llama_config,
)
