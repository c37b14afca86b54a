"""Small random models in Hugging Face form, one function for every test that needs a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

#: Divisible by 128 where it is quantized, grouped-query attention, small enough for milliseconds.
TINY_SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
FAMILIES = ("llama", "internlm2", "mistral", "qwen2", "qwen3")
DENSE_FAMILIES = (*FAMILIES, "internlm3", "phi3", "gemma2", "gemma3")
EXPERT_FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe")
_CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "phi3": ("Phi3Config", "Phi3ForCausalLM"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM"),
    "qwen2_moe": ("Qwen2MoeConfig", "Qwen2MoeForCausalLM"),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
}
#: What a family's shape has besides, or instead of, TINY_SHAPE.
_FAMILY_SHAPES: dict[str, dict[str, Any]] = {
    # Small enough for short texts to reach past the windows and into the caps.
    "gemma2": {
        "tie_word_embeddings": True,
        "sliding_window": 20,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        "tie_word_embeddings": True,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 20,
        "query_pre_attn_scalar": 24,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 128},
    "qwen2_moe": _EXPERTS | {"shared_expert_intermediate_size": 256},
    "qwen3_moe": _EXPERTS | {"norm_topk_prob": True},
}


def write_tiny_model(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    legacy_config: bool = False,
    **overrides: Any,
) -> Path:
    """Write a random model of a family and return its folder.

    overrides: fields of the transformers config, over TINY_SHAPE.  legacy_config: write config.json
    as transformers 4 did (torch_dtype, rope_theta, rope_scaling).  "internlm2" and "internlm3" have
    the weights that "llama" has with the same seed and overrides; InternLM2 in its own names and
    fused layout.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if family == "internlm2":
        model = random_model("llama", seed=seed, dtype=dtype, **overrides)
        _write_internlm2(folder, model)
        return folder
    model = random_model(oracle_of(family), seed=seed, dtype=dtype, **overrides)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    if family == "internlm3":
        raw = internlm3_config(raw)
    if legacy_config:
        raw = as_legacy_config(raw)
    path.write_text(json.dumps(raw))
    return folder


def oracle_of(family: str) -> str:
    """The family under which the transformers library computes this one."""
    return "llama" if family in ("internlm2", "internlm3") else family


def random_model(
    family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> Any:
    """The transformers model of a family with every parameter random, norms and biases too."""
    import transformers

    config_name, model_name = _CLASSES[family]
    shape = TINY_SHAPE | _FAMILY_SHAPES.get(family, {}) | overrides
    config = getattr(transformers, config_name)(**shape)
    # Of the library's ways to attend, only this one computes soft caps.
    config._attn_implementation = "eager"
    model = getattr(transformers, model_name)(config)
    generator = torch.Generator().manual_seed(seed)
    centre = 0 if family.startswith("gemma") else 1
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(centre + 0.1 * noise if "norm" in name else 0.08 * noise)
    return model.to(dtype).eval()


def as_legacy_config(raw: dict[str, Any]) -> dict[str, Any]:
    """A config.json of transformers 5 in the words of transformers 4."""
    legacy = {key: value for key, value in raw.items() if key not in ("rope_parameters", "dtype")}
    rope = dict(raw.get("rope_parameters") or {})
    if "sliding_attention" in rope:
        legacy["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    legacy["torch_dtype"] = raw["dtype"]
    legacy["rope_theta"] = rope.pop("rope_theta", 10000.0)
    if "partial_rotary_factor" in rope:
        legacy["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    kind = rope.pop("rope_type", "default")
    legacy["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    return legacy


def internlm3_config(llama: dict[str, Any]) -> dict[str, Any]:
    """A Llama config.json in the words of InternLM3's own code."""
    raw = dict(llama)
    return raw | {
        "model_type": "internlm3",
        "architectures": ["InternLM3ForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_internlm3.InternLM3Config",
            "AutoModelForCausalLM": "modeling_internlm3.InternLM3ForCausalLM",
        },
        "qkv_bias": raw.pop("attention_bias", False),
        "bias": raw.pop("mlp_bias", False),
    }


def fuse_wqkv(q: Tensor, k: Tensor, v: Tensor, *, head_dim: int) -> Tensor:
    """InternLM2's fused projection: for each key-value head its queries, its key, its value.

    Rows of q, k and v (weights or biases) are head by head, as Llama has them.
    """
    kv_heads = k.shape[0] // head_dim
    heads = [part.reshape(kv_heads, -1, head_dim, *part.shape[1:]) for part in (q, k, v)]
    return torch.cat(heads, dim=1).reshape(-1, *q.shape[1:])


_INTERNLM2_NAMES = {
    "model.embed_tokens.": "model.tok_embeddings.",
    "lm_head.": "output.",
    ".self_attn.o_proj.": ".attention.wo.",
    ".mlp.gate_proj.": ".feed_forward.w1.",
    ".mlp.up_proj.": ".feed_forward.w3.",
    ".mlp.down_proj.": ".feed_forward.w2.",
    ".input_layernorm.": ".attention_norm.",
    ".post_attention_layernorm.": ".ffn_norm.",
}


def internlm2_tensors(tensors: dict[str, Tensor], *, head_dim: int) -> dict[str, Tensor]:
    """Llama's tensors under InternLM2's names, q, k and v fused."""
    result = {}
    for name, tensor in tensors.items():
        if ".q_proj." in name:
            parts = [tensors[name.replace(".q_proj.", f".{p}_proj.")] for p in "qkv"]
            target = name.replace(".self_attn.q_proj.", ".attention.wqkv.")
            result[target] = fuse_wqkv(*parts, head_dim=head_dim)
        elif ".k_proj." not in name and ".v_proj." not in name:
            for old, new in _INTERNLM2_NAMES.items():
                name = name.replace(old, new)
            result[name] = tensor.contiguous()
    return result


def internlm2_config(llama: dict[str, Any]) -> dict[str, Any]:
    """A Llama config.json in the words of InternLM2's remote code."""
    raw = as_legacy_config(llama)
    bias = raw.pop("attention_bias", False)
    for key in ("mlp_bias", "head_dim", "pretraining_tp", "attention_dropout"):
        raw.pop(key, None)
    return raw | {
        "model_type": "internlm2",
        "architectures": ["InternLM2ForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
        },
        "attn_implementation": "eager",
        "bias": bias,
    }


def _write_internlm2(folder: Path, model: Any) -> None:
    config = model.config
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        raise ValueError("InternLM2 derives head_dim: heads times head_dim must be hidden_size")
    tensors = internlm2_tensors(dict(model.state_dict()), head_dim=config.head_dim)
    if config.tie_word_embeddings:
        tensors.pop("output.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    dtype = str(model.dtype).removeprefix("torch.")
    raw = internlm2_config(config.to_diff_dict() | {"dtype": dtype})
    (folder / "config.json").write_text(json.dumps(raw, indent=2))
