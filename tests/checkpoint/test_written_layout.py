"""Written checkpoints have the names, the fused matrices and the lists that engines look for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from awqkit.checkpoint import QuantizedWeight, open_checkpoint, write_checkpoint
from awqkit.checkpoint.families import find_family
from awqkit.checkpoint.packing import PACKED_FORMATS, PackedFormat
from awqkit.checkpoint.written_layout import Assembly, WrittenLayout
from tests.checkpoint.folders import equal, quantized_weights, random_codes
from tests.tiny_models import DENSE_FAMILIES, EXPERT_FAMILIES, write_tiny_model

FAMILIES = (*DENSE_FAMILIES, *EXPERT_FAMILIES)
PACKED_SUFFIXES = {"awq": "qweight", "compressed-tensors": "weight_packed"}


def stored_names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def written(folder: Path, family: str, form: PackedFormat, **overrides: Any) -> tuple[Path, Path]:
    """A random plain model, and the same with random codes."""
    source = open_checkpoint(write_tiny_model(folder / "model", family, **overrides))
    out = folder / form
    write_checkpoint(out, quantized_weights(source), source=source, format=form)
    return source.folder, out


def modules_left_alone(folder: Path) -> list[str]:
    method = json.loads((folder / "config.json").read_text())["quantization_config"]
    return method.get("modules_to_not_convert") or method["ignore"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", PACKED_FORMATS)
def test_what_was_given_is_read_back(tmp_path: Path, family: str, form: PackedFormat) -> None:
    source = open_checkpoint(write_tiny_model(tmp_path / "model", family))
    weights = dict(quantized_weights(source))
    write_checkpoint(tmp_path / "out", weights.items(), source=source, format=form)
    result = open_checkpoint(tmp_path / "out")
    assert set(result.names()) == set(weights)
    assert all(equal(result.weight(name), weight) for name, weight in weights.items())
    assert result.config == open_checkpoint(tmp_path / "out").config
    assert result.config.windows == source.config.windows
    assert result.config.rope == source.config.rope


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "internlm2"])
@pytest.mark.parametrize("form", PACKED_FORMATS)
def test_names_are_those_that_the_transformers_library_saves(
    tmp_path: Path, family: str, form: PackedFormat
) -> None:
    plain, packed = written(tmp_path, family, form)
    suffix = PACKED_SUFFIXES[form]
    names = stored_names(packed)
    stems = {name.removesuffix(suffix) for name in names if name.endswith(suffix)}
    dense = {name for name in names if name.endswith((".weight", ".bias"))}
    assert dense | {f"{stem}weight" for stem in stems} == stored_names(plain)
    assert len(stems) >= 2 * 4


@pytest.mark.parametrize(
    ("family", "left"),
    [
        ("phi3", ["lm_head"]),
        ("gemma2", ["lm_head"]),
        (
            "mixtral",
            [
                "model.layers.0.block_sparse_moe.gate",
                "model.layers.1.block_sparse_moe.gate",
                "lm_head",
            ],
        ),
        (
            "qwen2_moe",
            [
                "model.layers.0.mlp.gate",
                "model.layers.0.mlp.shared_expert_gate",
                "model.layers.1.mlp.gate",
                "model.layers.1.mlp.shared_expert_gate",
                "lm_head",
            ],
        ),
        ("qwen3_moe", ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate", "lm_head"]),
    ],
)
@pytest.mark.parametrize("form", PACKED_FORMATS)
def test_modules_left_alone_are_named_as_engines_call_them(
    tmp_path: Path, family: str, left: list[str], form: PackedFormat
) -> None:
    _, packed = written(tmp_path, family, form)
    assert modules_left_alone(packed) == left


def test_a_fused_matrix_left_alone_is_named_once(tmp_path: Path) -> None:
    """Groups of 128 do not divide 192 inputs."""
    shape = {"hidden_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    _, packed = written(tmp_path, "phi3", "awq", **shape)
    assert modules_left_alone(packed) == [
        "model.layers.0.self_attn.qkv_proj",
        "model.layers.0.mlp.gate_up_proj",
        "model.layers.1.self_attn.qkv_proj",
        "model.layers.1.mlp.gate_up_proj",
        "lm_head",
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_architecture_and_family_are_those_that_engines_know(tmp_path: Path, family: str) -> None:
    plain, packed = written(tmp_path, family, "awq")
    config = json.loads((packed / "config.json").read_text())
    llama = ("llama", ["LlamaForCausalLM"])
    before = json.loads((plain / "config.json").read_text())
    own = (before["model_type"], before["architectures"])
    wanted = llama if family.startswith("internlm") else own
    assert (config["model_type"], config["architectures"]) == wanted
    assert "auto_map" not in config


def phi3_layout(tmp_path: Path) -> WrittenLayout:
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "model", "phi3"))
    return WrittenLayout(checkpoint.config, find_family(checkpoint.raw_config))


def test_parts_are_put_together_in_any_order(tmp_path: Path) -> None:
    assembly = Assembly(phi3_layout(tmp_path))
    stem = "model.layers.1.self_attn."
    rows = {"q": 128, "k": 64, "v": 64}
    parts = {f"{stem}{p}_proj.weight": random_codes(n, 128, seed=n) for p, n in rows.items()}
    assert assembly.add(f"{stem}v_proj.weight", parts[f"{stem}v_proj.weight"]) is None
    assert assembly.add(f"{stem}q_proj.weight", parts[f"{stem}q_proj.weight"]) is None
    complete = assembly.add(f"{stem}k_proj.weight", parts[f"{stem}k_proj.weight"])
    assert complete is not None
    name, whole = complete
    assert name == f"{stem}qkv_proj.weight"
    assert isinstance(whole, QuantizedWeight)
    for field in ("codes", "scales", "zeros"):
        expected = torch.cat([getattr(parts[f"{stem}{p}_proj.weight"], field) for p in "qkv"])
        assert torch.equal(getattr(whole, field), expected)


def test_a_fused_matrix_cannot_be_half_quantized(tmp_path: Path) -> None:
    assembly = Assembly(phi3_layout(tmp_path))
    stem = "model.layers.0.mlp."
    assembly.add(f"{stem}gate_proj.weight", random_codes(256, 128, seed=0))
    with pytest.raises(ValueError, match="half quantized"):
        assembly.add(f"{stem}up_proj.weight", torch.zeros(256, 128))
