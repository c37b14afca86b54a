"""Logits of load() against the transformers library, for random models of every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit.checkpoint import open_checkpoint, write_checkpoint
from awqkit_runtime import load
from tests.checkpoint.folders import edit_config
from tests.models.paged_generation import generate_greedily
from tests.tiny_models import TINY_SHAPE, oracle_of, random_model, write_tiny_model


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
#: For heads of 32: one divisor for each of the 16 rotating pairs.
LONGROPE = rope(
    "longrope",
    short_factor=[1 + 0.05 * pair for pair in range(16)],
    long_factor=[1.5 + 0.3 * pair for pair in range(16)],
)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("llama", {"head_dim": 64}),
    "llama-no-groups": ("llama", {"num_key_value_heads": 4}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "llama-theta-eps": ("llama", {"rope_parameters": {"rope_theta": 5e5}, "rms_norm_eps": 1e-3}),
    "rope-llama3": ("llama", rope("llama3", **LLAMA3)),
    "rope-linear": ("llama", rope("linear", factor=4.0)),
    "rope-dynamic": ("llama", rope("dynamic", factor=2.0)),
    "rope-dynamic-long": ("llama", {"max_position_embeddings": 48, **rope("dynamic", factor=2.0)}),
    "rope-yarn": ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    "rope-yarn-tuned": (
        "llama",
        rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=64,
            beta_fast=16.0,
            beta_slow=2.0,
            attention_factor=1.2,
        ),
    ),
    "internlm2": ("internlm2", {}),
    "internlm2-biases": ("internlm2", {"attention_bias": True}),
    "internlm2-dynamic": ("internlm2", rope("dynamic", factor=2.0)),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 17}),
    "mistral-head-dim": ("mistral", {"head_dim": 16, "sliding_window": 33}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "internlm3": ("internlm3", rope("dynamic", factor=6.0)),
    "internlm3-biases": ("internlm3", {"attention_bias": True, "mlp_bias": True}),
    "phi3": ("phi3", {}),
    "phi3-window": ("phi3", {"sliding_window": 17, "num_key_value_heads": 4}),
    "phi3-partial-tied": (
        "phi3",
        {"tie_word_embeddings": True, **rope("default", partial_rotary_factor=0.75)},
    ),
    "phi3-longrope-short": ("phi3", {"original_max_position_embeddings": 90, **LONGROPE}),
    "phi3-longrope-long": ("phi3", {"original_max_position_embeddings": 89, **LONGROPE}),
    "gemma2": ("gemma2", {}),
    "gemma2-untied-head-dim": ("gemma2", {"tie_word_embeddings": False, "head_dim": 64}),
    "gemma2-no-caps": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3": ("gemma3", {}),
    "gemma3-linear": (
        "gemma3",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            }
        },
    ),
    "mixtral": ("mixtral", {}),
    "mixtral-window": ("mixtral", {"sliding_window": 17}),
    "qwen2-moe": ("qwen2_moe", {}),
    "qwen2-moe-some-layers": (
        "qwen2_moe",
        {
            "num_hidden_layers": 4,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
        },
    ),
    "qwen3-moe": ("qwen3_moe", {}),
    "qwen3-moe-plain-shares": ("qwen3_moe", {"norm_topk_prob": False, "mlp_only_layers": [0]}),
    "qwen3-tied-head-dim": ("qwen3", {"tie_word_embeddings": True, "head_dim": 64}),
}


@pytest.mark.parametrize("legacy_config", [False, True], ids=["v5", "v4"])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case: str, legacy_config: bool, tmp_path: Path) -> None:
    family, overrides = CASES[case]
    if legacy_config and family == "internlm2":
        pytest.skip("InternLM2's config has one form only")
    folder = write_tiny_model(
        tmp_path / "model", family, seed=3, legacy_config=legacy_config, **overrides
    )
    model = load(folder, device="cpu", dtype=torch.float32)
    reference = random_model(oracle_of(family), seed=3, **overrides)
    ids = torch.randint(0, 320, (2, 90), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = reference(ids).logits
    logits = model(ids)
    assert logits.dtype == torch.float32
    assert expected.std() > 0.1
    assert (logits - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(
    "case",
    ["internlm3", "phi3-longrope-long", "gemma2", "gemma3", "mixtral", "qwen2-moe", "qwen3-moe"],
)
def test_the_same_tokens_through_pages_as_by_transformers(case: str, tmp_path: Path) -> None:
    """The prompt in chunks, longer than the windows; then one token after the other."""
    family, overrides = CASES[case]
    model = load(write_tiny_model(tmp_path / "model", family, seed=5, **overrides), device="cpu")
    reference = random_model(oracle_of(family), seed=5, **overrides)
    prompt = torch.randint(3, 320, (95,), generator=torch.Generator().manual_seed(6)).tolist()
    expected = list(prompt)
    with torch.no_grad():
        for _ in range(12):
            expected.append(int(reference(torch.tensor([expected])).logits[0, -1].argmax()))
    assert generate_greedily(model.decoder, prompt, 12, quant_policy=0, chunk=40) == expected


def test_a_batch_gives_what_its_rows_give_alone(tmp_path: Path) -> None:
    model = load(write_tiny_model(tmp_path / "model", "qwen3"), device="cpu", dtype="float32")
    ids = torch.randint(0, 320, (3, 40), generator=torch.Generator().manual_seed(5))
    alone = torch.cat([model(row.unsqueeze(0)) for row in ids])
    torch.testing.assert_close(model(ids), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_weights_come_close_to_the_full_ones(dtype: str, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model", "llama")
    ids = torch.randint(0, 320, (1, 40), generator=torch.Generator().manual_seed(6))
    full = load(folder, device="cpu", dtype="float32")(ids)
    half = load(folder, device="cpu", dtype=dtype)(ids)
    assert half.dtype == torch.float32
    error = (half - full).abs().max()
    assert 0 < error <= 0.05 * full.abs().max()


def test_auto_takes_the_dtype_of_the_checkpoint(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model", "llama", dtype=torch.bfloat16)
    assert load(folder, device="cpu").decoder.dtype == torch.bfloat16


def test_the_text_part_of_a_model_with_vision(tmp_path: Path) -> None:
    """Its logits, and those of the text model that is written from it."""
    from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

    text = TINY_SHAPE | {"sliding_window": 20, "query_pre_attn_scalar": 24, "num_hidden_layers": 7}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    text["tie_word_embeddings"] = True
    torch.manual_seed(7)
    both = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    ).eval()
    both.save_pretrained(tmp_path / "model")
    ids = torch.randint(0, 320, (1, 60), generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        expected = both(ids).logits
    with pytest.warns(UserWarning, match="text only"):
        logits = load(tmp_path / "model", device="cpu")(ids)
    assert (logits - expected).abs().max() <= 1e-4

    with pytest.warns(UserWarning, match="text only"):
        source = open_checkpoint(tmp_path / "model")
    weights = ((name, source.tensor(name)) for name in source.names())
    write_checkpoint(tmp_path / "text", weights, source=source, format="awq")
    edit_config(tmp_path / "text", quantization_config=...)
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "text", dtype=torch.float32)
    with torch.no_grad():
        assert (alone(ids).logits - expected).abs().max() <= 1e-4
