from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from awqkit.checkpoint import (
    CheckpointError,
    DecoderConfig,
    UnsupportedModelError,
    read_decoder_config,
)
from awqkit.checkpoint.families import FAMILIES, find_family
from tests.checkpoint.folders import edit_config
from tests.tiny_models import write_tiny_model

SHARED = Path(__file__).parents[3] / "../shared"
MINIMAL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 100,
}


def read(model_type: str, **fields: Any) -> DecoderConfig:
    raw = MINIMAL | {"model_type": model_type} | fields
    return find_family(raw).read_config({k: v for k, v in raw.items() if v is not ...})


def test_unknown_family_lists_the_known_and_says_what_to_do() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        find_family({"model_type": "mamba"})
    message = str(caught.value)
    assert "'mamba'" in message and "convert" in message and "issue" in message
    for family in FAMILIES:
        assert family.name in message


@pytest.mark.parametrize("raw", [{}, {"model_type": None}, {"model_type": ["llama"]}])
def test_missing_model_type(raw: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="no supported family"):
        find_family(raw)


def test_llama_defaults() -> None:
    config = read("llama")
    assert (config.num_kv_heads, config.head_dim, config.norm_eps) == (4, 16, 1e-6)
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (1, (2,), None)
    assert not (config.qkv_bias or config.o_bias or config.mlp_bias or config.qk_norm)
    assert config.max_position_embeddings == 2048
    assert config.windows == ()
    assert not config.tie_word_embeddings


def test_llama_options() -> None:
    config = read(
        "llama",
        attention_bias=True,
        mlp_bias=True,
        head_dim=24,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=[7, 9, 11],
        pad_token_id=-1,
    )
    assert config.qkv_bias and config.o_bias and config.mlp_bias
    assert (config.q_size, config.kv_size) == (96, 48)
    assert config.eos_token_ids == (7, 9, 11)
    assert config.pad_token_id is None


def test_eos_of_null_means_none() -> None:
    assert read("llama", eos_token_id=None).eos_token_ids == ()
    assert read("qwen2").eos_token_ids == ()


def test_names_of_llama_are_written_as_llama() -> None:
    raw = MINIMAL | {"model_type": "aquila", "architectures": ["AquilaForCausalLM"]}
    written = find_family(raw).written_config(raw)
    assert written["model_type"] == "llama"
    assert written["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({}, (4096,) * 3),
        ({"sliding_window": None}, ()),
        ({"sliding_window": 100}, (100,) * 3),
        (
            {
                "sliding_window": 9,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
            (None, 9, None),
        ),
    ],
)
def test_mistral_windows(fields: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert read("mistral", num_key_value_heads=2, **fields).windows == windows


def test_mistral_has_no_biases_and_eight_kv_heads_unless_said() -> None:
    config = read("mistral", num_attention_heads=16, attention_bias=True)
    assert config.num_kv_heads == 8
    assert not config.qkv_bias


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({}, ()),
        ({"sliding_window": 50, "max_window_layers": 1}, ()),
        ({"use_sliding_window": False, "sliding_window": 50, "max_window_layers": 0}, ()),
        (
            {"use_sliding_window": True, "sliding_window": 50, "max_window_layers": 1},
            (None, 50, 50),
        ),
        ({"use_sliding_window": True, "sliding_window": 50}, ()),
        ({"use_sliding_window": True, "max_window_layers": 2}, (None, None, 4096)),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, ()),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 7,
                "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            },
            (7, None, None),
        ),
    ],
)
def test_qwen_windows(
    model_type: str, fields: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert read(model_type, **fields).windows == windows


def test_qwen2_has_biases_on_qkv_alone() -> None:
    config = read("qwen2")
    assert (config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm) == (
        True,
        False,
        False,
        False,
    )


def test_qwen3_has_norms_and_its_own_head_dim() -> None:
    config = read("qwen3", attention_bias=True)
    assert config.qk_norm and config.qkv_bias and config.o_bias
    assert config.head_dim == 128
    assert read("qwen3", head_dim=32).head_dim == 32
    assert not read("qwen3").qkv_bias


def test_internlm2_biases_default_to_true() -> None:
    assert read("internlm2").qkv_bias and read("internlm2").o_bias
    config = read("internlm2", bias=False)
    assert not (config.qkv_bias or config.o_bias or config.mlp_bias)


def test_internlm2_is_written_as_llama() -> None:
    raw = MINIMAL | {
        "model_type": "internlm2",
        "architectures": ["InternLM2ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
        "attn_implementation": "eager",
        "bias": True,
        "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    written = find_family(raw).written_config(raw)
    assert written["model_type"] == "llama"
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert written["attention_bias"] is True
    assert written["rope_theta"] == 1000000
    assert written["rope_scaling"] == {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0}
    assert not {"auto_map", "bias", "attn_implementation"} & set(written)
    assert find_family(written).read_config(written) == find_family(raw).read_config(raw)


@pytest.mark.parametrize("name", ["internlm2_5-7b-chat", "internlm2_5-1_8b-chat"])
def test_published_internlm2_configs(name: str) -> None:
    folder = SHARED / "configs" / name
    if not folder.is_dir():
        pytest.skip("needs ../shared/configs")
    config = read_decoder_config(folder)
    raw = json.loads((folder / "config.json").read_text())
    assert config.hidden_size == raw["hidden_size"]
    assert config.num_kv_heads == raw["num_key_value_heads"]
    assert config.rope.kind == "dynamic"
    assert config.rope.theta == 1e6
    assert not config.qkv_bias


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_old_and_new_config_files_mean_the_same(tmp_path: Path, family: str) -> None:
    rope = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0}
    new = write_tiny_model(tmp_path / "new", family, rope_parameters=rope)
    old = write_tiny_model(tmp_path / "old", family, rope_parameters=rope, legacy_config=True)
    assert "rope_parameters" in json.loads((new / "config.json").read_text())
    assert "rope_parameters" not in json.loads((old / "config.json").read_text())
    assert read_decoder_config(new) == read_decoder_config(old)
    assert read_decoder_config(new).rope.factor == 3.0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "float32"}, "float32"),
        ({"dtype": "bfloat16", "torch_dtype": "float16"}, "bfloat16"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"dtype": None, "torch_dtype": "half"}, "float16"),
        ({"dtype": "auto"}, "bfloat16"),
        ({}, "bfloat16"),
    ],
)
def test_dtype(fields: dict[str, Any], expected: str) -> None:
    assert read("llama", **fields).dtype == expected


def test_dtype_that_is_not_supported() -> None:
    with pytest.raises(UnsupportedModelError, match="float8_e4m3fn"):
        read("llama", dtype="float8_e4m3fn")


@pytest.mark.parametrize("key", list(MINIMAL))
def test_missing_sizes_are_named(key: str) -> None:
    with pytest.raises(CheckpointError, match=key):
        read("llama", **{key: ...})


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": "64"},
        {"hidden_size": 64.0},
        {"hidden_size": True},
        {"hidden_size": 0},
        {"num_hidden_layers": -1},
        {"num_attention_heads": 0},
        {"num_attention_heads": 5},
        {"num_key_value_heads": 3},
        {"head_dim": 15},
        {"rms_norm_eps": "small"},
        {"tie_word_embeddings": "yes"},
        {"eos_token_id": "2"},
        {"eos_token_id": [2, None]},
        {"max_position_embeddings": -5},
    ],
)
def test_bad_values_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read("llama", **fields)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "internlm2"])
def test_other_activations_are_refused(model_type: str) -> None:
    with pytest.raises(UnsupportedModelError, match="gelu"):
        read(model_type, hidden_act="gelu", num_key_value_heads=2)


@pytest.mark.parametrize("kinds", [["full_attention"], "full_attention", ["chunked_attention"] * 3])
def test_bad_layer_types(kinds: Any) -> None:
    with pytest.raises(CheckpointError, match="layer_types"):
        read("qwen3", use_sliding_window=True, sliding_window=4, layer_types=kinds)


@pytest.mark.parametrize("window", [0, -4])
def test_bad_window(window: int) -> None:
    with pytest.raises(CheckpointError, match="sliding_window"):
        read("mistral", num_key_value_heads=2, sliding_window=window)


def test_a_folder_with_only_a_config_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MINIMAL | {"model_type": "llama"}))
    assert read_decoder_config(tmp_path).hidden_size == 64
    edit_config(tmp_path, hidden_size=...)
    with pytest.raises(CheckpointError, match="hidden_size"):
        read_decoder_config(tmp_path)


# The fields that the published configurations have, without those that mean nothing to a decoder.
YI_6B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 64000,
}
R1_DISTILL_QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
R1_DISTILL_LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
INTERNLM3_8B = {
    "architectures": ["InternLM3ForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_internlm3.InternLM3ForCausalLM"},
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 10240,
    "max_position_embeddings": 32768,
    "model_type": "internlm3",
    "num_attention_heads": 32,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "qkv_bias": False,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"},
    "rope_theta": 50000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128512,
}
GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "vocab_size": 262144,
}


def read_published(raw: dict[str, Any]) -> DecoderConfig:
    return find_family(raw).read_config(raw)


def test_yi_as_it_is_published() -> None:
    config = read_published(YI_6B)
    assert (config.rope.kind, config.rope.theta) == ("default", 5e6)
    assert (config.num_kv_heads, config.head_dim, config.pad_token_id) == (4, 128, 0)
    assert config.windows == () and not config.qkv_bias


def test_the_distillations_as_they_are_published() -> None:
    qwen, llama = read_published(R1_DISTILL_QWEN_7B), read_published(R1_DISTILL_LLAMA_8B)
    assert qwen.qkv_bias and not qwen.o_bias and qwen.windows == ()
    assert (qwen.rope.theta, qwen.eos_token_ids, qwen.head_dim) == (1e4, (151643,), 128)
    assert (llama.rope.kind, llama.rope.factor, llama.num_kv_heads) == ("llama3", 8.0, 8)
    assert not llama.qkv_bias


def test_internlm3_as_it_is_published_and_as_it_is_written() -> None:
    config = read_published(INTERNLM3_8B)
    assert (config.rope.kind, config.rope.factor, config.rope.theta) == ("dynamic", 6.0, 5e7)
    assert (config.num_kv_heads, config.head_dim, config.norm_eps) == (2, 128, 1e-5)
    assert not (config.qkv_bias or config.o_bias or config.mlp_bias)
    written = find_family(INTERNLM3_8B).written_config(INTERNLM3_8B)
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert not {"auto_map", "bias", "qkv_bias"} & set(written)
    assert read_published(written) == config


def test_internlm3_biases() -> None:
    config = read("internlm3", qkv_bias=True, bias=True, num_key_value_heads=2, head_dim=16)
    assert config.qkv_bias and config.o_bias and config.mlp_bias
    with pytest.raises(UnsupportedModelError, match="qkv_bias"):
        read("internlm3", qkv_bias=True, num_key_value_heads=2)


def test_gemma3_as_it_is_published() -> None:
    config = read_published(GEMMA3_1B)
    assert config.windows == ((512,) * 5 + (None,)) * 4 + (512, 512)
    assert (config.rope_of(0).theta, config.rope_of(5).theta) == (1e4, 1e6)
    assert config.tie_word_embeddings and config.qk_norm and config.post_norms
    assert config.attention_softcap is None and config.final_softcap is None
    assert (config.embedding_scale, config.attention_scale) == (1152**0.5, 1 / 16)


def test_gemma3_with_vision_as_it_is_published() -> None:
    """Its text_config says what differs from the family's defaults, and no more."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    raw = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "model_type": "gemma3",
        "text_config": text,
        "torch_dtype": "bfloat16",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    }
    config = read_published(raw)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert (config.vocab_size, config.eos_token_ids) == (262208, (1, 106))
    assert (config.rope_of(5).kind, config.rope_of(5).factor) == ("linear", 8.0)
    assert (config.rope_of(0).kind, config.window(0), config.window(5)) == ("default", 1024, None)
    written = find_family(raw).written_config(raw)
    assert written["model_type"] == "gemma3_text" and "vision_config" not in written
    assert read_published(written) == config


def test_gemma2_defaults() -> None:
    config = read("gemma2")
    assert config.windows == (4096, None, 4096)
    assert (config.attention_softcap, config.final_softcap) == (50.0, 30.0)
    assert (config.head_dim, config.num_kv_heads, config.activation) == (256, 4, "gelu_tanh")
    assert read("gemma2", final_logit_softcapping=None).final_softcap is None
    assert read("gemma2", sliding_window=None).windows == ()


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_gemma_variants_that_are_refused(model_type: str) -> None:
    with pytest.raises(UnsupportedModelError, match="hidden_activation"):
        read(model_type, hidden_activation="relu")
    with pytest.raises(UnsupportedModelError, match="bidirectional"):
        read(model_type, use_bidirectional_attention=True)
    with pytest.raises(CheckpointError, match="soft caps"):
        read(model_type, final_logit_softcapping=0.0)


def test_phi3_older_names_of_longrope() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    for kind in ("su", "yarn", "longrope"):
        scaling = {"type": kind, **factors}
        config = read("phi3", max_position_embeddings=131072, rope_scaling=scaling)
        assert (config.rope.kind, config.rope.factor) == ("longrope", 32.0)
        assert config.rope.original_max_position_embeddings == 4096
    with pytest.raises(CheckpointError, match="8 rotating pairs"):
        read("phi3", rope_scaling={"type": "su", "short_factor": [1.0], "long_factor": [1.0]})


def test_experts_of_every_family() -> None:
    mixtral = read("mixtral", num_key_value_heads=2).experts
    assert mixtral is not None
    assert (mixtral.num_experts, mixtral.experts_per_token, mixtral.intermediate_size) == (8, 2, 96)
    assert mixtral.norm_topk_prob and mixtral.layers == (0, 1, 2)
    qwen2 = read("qwen2_moe", num_experts_per_tok=4, mlp_only_layers=[1]).experts
    assert qwen2 is not None and qwen2.layers == (0, 2) and not qwen2.norm_topk_prob
    assert (qwen2.num_experts, qwen2.shared_intermediate_size) == (60, 5632)
    qwen3 = read("qwen3_moe", num_experts_per_tok=8, decoder_sparse_step=2).experts
    assert qwen3 is not None and qwen3.layers == (1,) and qwen3.shared_intermediate_size is None
    assert read("qwen3_moe", num_experts_per_tok=8, num_experts=0).experts is None


@pytest.mark.parametrize(
    "fields",
    [
        {"num_experts": 4, "num_experts_per_tok": 5},
        {"num_experts": -1},
        {"num_experts": 10**9},
        {"num_experts_per_tok": 0},
        {"moe_intermediate_size": 0},
        {"decoder_sparse_step": 0},
        {"mlp_only_layers": "all"},
        {"mlp_only_layers": [None]},
    ],
)
def test_bad_experts_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read("qwen3_moe", **{"num_experts_per_tok": 2, **fields})
