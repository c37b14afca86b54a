"""Logits of load() against the transformers library, for random models of every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit_runtime import load
from tests.tiny_models import random_model, write_tiny_model


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
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
    reference = random_model("llama" if family == "internlm2" else family, seed=3, **overrides)
    ids = torch.randint(0, 320, (2, 90), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = reference(ids).logits
    logits = model(ids)
    assert logits.dtype == torch.float32
    assert expected.std() > 0.1
    assert (logits - expected).abs().max() <= 1e-4


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
