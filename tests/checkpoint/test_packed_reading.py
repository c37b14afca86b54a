"""Quantized folders as this project and as others write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from awqkit.checkpoint import (
    CheckpointError,
    QuantizedWeight,
    UnsupportedModelError,
    open_checkpoint,
)
from awqkit.checkpoint.packing import PACKED_FORMATS, PackedFormat, pack
from awqkit.checkpoint.quantization_config import write_quantization
from tests.checkpoint.folders import (
    Tensors,
    edit_config,
    edit_tensors,
    equal,
    quantized_weights,
    random_codes,
)
from tests.tiny_models import fuse_wqkv, write_tiny_model

UP = "model.layers.0.mlp.up_proj."


def packed_folder(
    folder: Path, packed_format: PackedFormat, *, family: str = "llama", **overrides: Any
) -> tuple[Path, dict[str, Tensor | QuantizedWeight]]:
    """A folder written without the writer, and the weights in it."""
    write_tiny_model(folder, family, dtype=torch.bfloat16, **overrides)
    weights = dict(quantized_weights(open_checkpoint(folder)))
    tensors: Tensors = {}
    for name, weight in weights.items():
        if isinstance(weight, QuantizedWeight):
            stem = name.removesuffix("weight")
            tensors |= {stem + k: t for k, t in pack(weight, packed_format).items()}
        else:
            tensors[name] = weight
    save_file(tensors, folder / "model.safetensors")
    section = write_quantization(packed_format, ["lm_head"])
    return edit_config(folder, quantization_config=section), weights


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("packed_format", PACKED_FORMATS)
def test_reads_both_formats(tmp_path: Path, packed_format: PackedFormat, family: str) -> None:
    folder, weights = packed_folder(tmp_path, packed_format, family=family)
    checkpoint = open_checkpoint(folder, model_format=packed_format)
    assert checkpoint.format == packed_format
    assert set(checkpoint.names()) == set(weights)
    for name, weight in weights.items():
        assert checkpoint.is_quantized(name) == isinstance(weight, QuantizedWeight)
        assert equal(checkpoint.weight(name), weight)
        if isinstance(weight, QuantizedWeight):
            assert checkpoint.shape(name) == (weight.out_features, weight.in_features)
    with pytest.raises(CheckpointError, match="stored quantized"):
        checkpoint.tensor(UP + "weight")


def test_modules_that_stayed_dense(tmp_path: Path) -> None:
    folder, weights = packed_folder(tmp_path, "awq", intermediate_size=200)
    checkpoint = open_checkpoint(folder)
    assert not checkpoint.is_quantized("model.layers.0.mlp.down_proj.weight")
    assert checkpoint.is_quantized("model.layers.0.mlp.up_proj.weight")
    assert all(equal(checkpoint.weight(name), weight) for name, weight in weights.items())


def test_symmetric_compressed_tensors(tmp_path: Path) -> None:
    folder, weights = packed_folder(tmp_path, "compressed-tensors")
    edit_tensors(folder, lambda t: {k: v for k, v in t.items() if "zero_point" not in k})
    with pytest.raises(CheckpointError, match="weight_zero_point"):
        open_checkpoint(folder)
    section = write_quantization("compressed-tensors", ["lm_head"])
    section["config_groups"]["group_0"]["weights"]["symmetric"] = True
    edit_config(folder, quantization_config=section)
    read = open_checkpoint(folder).quantized(UP + "weight")
    expected = weights[UP + "weight"]
    assert isinstance(expected, QuantizedWeight)
    assert torch.equal(read.codes, expected.codes)
    assert torch.equal(read.zeros, torch.full_like(expected.zeros, 8))


@pytest.mark.parametrize(
    ("packed_format", "suffix"), [("awq", "scales"), ("compressed-tensors", "weight_scale")]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scales_in_other_dtypes_keep_their_values(
    tmp_path: Path, packed_format: PackedFormat, suffix: str, dtype: torch.dtype
) -> None:
    folder, _ = packed_folder(tmp_path, packed_format)
    scales = {}

    def widen(tensors: Tensors) -> None:
        for name in list(tensors):
            if name.endswith("." + suffix):
                tensors[name] = tensors[name].bfloat16().to(dtype)
                scales[name] = tensors[name]

    edit_tensors(folder, widen)
    read = open_checkpoint(folder).quantized(UP + "weight").scales
    stored = scales[UP + suffix].T if packed_format == "awq" else scales[UP + suffix]
    assert read.dtype == torch.float16
    assert torch.equal(read.float(), stored.float())


@pytest.mark.parametrize(
    ("value", "message"),
    [(1e5, "FP16 cannot represent"), (1 / 3, "FP16 cannot represent"), (float("nan"), "NaN")],
)
def test_scales_that_would_change_are_refused(tmp_path: Path, value: float, message: str) -> None:
    folder, _ = packed_folder(tmp_path, "awq")

    def spoil(tensors: Tensors) -> None:
        tensors[UP + "scales"] = tensors[UP + "scales"].float()
        tensors[UP + "scales"][0, 3] = value

    checkpoint = open_checkpoint(edit_tensors(folder, spoil))
    with pytest.raises(CheckpointError, match=f"{UP}scales holds.*{message}"):
        checkpoint.quantized(UP + "weight")


def test_tiny_bfloat16_scales_are_rounded_to_fp16(tmp_path: Path) -> None:
    folder, _ = packed_folder(tmp_path, "compressed-tensors")
    tiny = 1.1e-6

    def shrink(tensors: Tensors) -> None:
        tensors[UP + "weight_scale"] = tensors[UP + "weight_scale"].bfloat16()
        tensors[UP + "weight_scale"][0] = tiny

    read = open_checkpoint(edit_tensors(folder, shrink)).quantized(UP + "weight").scales
    assert (read[0].float() - tiny).abs().max() <= 2.0**-25


def drop_suffix(folder: Path, suffix: str) -> Path:
    return edit_tensors(folder, lambda t: {k: v for k, v in t.items() if k != UP + suffix})


@pytest.mark.parametrize(
    ("packed_format", "suffix"),
    [
        ("awq", "qweight"),
        ("awq", "qzeros"),
        ("awq", "scales"),
        ("compressed-tensors", "weight_packed"),
        ("compressed-tensors", "weight_scale"),
        ("compressed-tensors", "weight_shape"),
    ],
)
def test_missing_part_is_named(tmp_path: Path, packed_format: PackedFormat, suffix: str) -> None:
    folder, _ = packed_folder(tmp_path, packed_format)
    with pytest.raises(CheckpointError, match=UP):
        open_checkpoint(drop_suffix(folder, suffix))


@pytest.mark.parametrize(
    ("packed_format", "suffix", "replacement"),
    [
        ("awq", "qweight", torch.zeros(128, 31, dtype=torch.int32)),
        ("awq", "qweight", torch.zeros(256, 16, dtype=torch.int32)),
        ("awq", "qweight", torch.zeros(128, 32, dtype=torch.int64)),
        ("awq", "qzeros", torch.zeros(2, 32, dtype=torch.int32)),
        ("awq", "scales", torch.zeros(4, 256, dtype=torch.float16)),
        ("awq", "scales", torch.zeros(1, 256, dtype=torch.int8)),
        ("compressed-tensors", "weight_zero_point", torch.zeros(256, 1, dtype=torch.int8)),
        ("compressed-tensors", "weight_packed", torch.zeros(256, 32, dtype=torch.int32)),
    ],
)
def test_parts_of_the_wrong_form_are_named(
    tmp_path: Path, packed_format: PackedFormat, suffix: str, replacement: Tensor
) -> None:
    folder, _ = packed_folder(tmp_path, packed_format)
    edit_tensors(folder, lambda t: t | {UP + suffix: replacement})
    with pytest.raises(CheckpointError, match=f"tensor {UP}{suffix} has"):
        open_checkpoint(folder)


def test_weight_shape_that_contradicts_the_config(tmp_path: Path) -> None:
    folder, _ = packed_folder(tmp_path, "compressed-tensors")
    edit_tensors(folder, lambda t: t | {UP + "weight_shape": torch.tensor([128, 256])})
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match=f"{UP}weight_shape"):
        checkpoint.quantized(UP + "weight")


def test_group_index_of_reordered_columns_is_refused(tmp_path: Path) -> None:
    folder, _ = packed_folder(tmp_path, "compressed-tensors")
    index = torch.zeros(128, dtype=torch.int32)
    edit_tensors(folder, lambda t: t | {UP + "weight_g_idx": index})
    with pytest.raises(CheckpointError, match="weight_g_idx"):
        open_checkpoint(folder)


def test_packed_and_plain_at_once(tmp_path: Path) -> None:
    folder, _ = packed_folder(tmp_path, "awq")
    edit_tensors(folder, lambda t: t | {UP + "weight": torch.zeros(256, 128)})
    with pytest.raises(CheckpointError, match=f"{UP}weight twice"):
        open_checkpoint(folder)


def test_packed_tensors_without_a_word_in_the_config(tmp_path: Path) -> None:
    folder, _ = packed_folder(tmp_path, "awq")
    with pytest.raises(CheckpointError, match="no quantization_config"):
        open_checkpoint(edit_config(folder, quantization_config=...))


def test_quantized_embedding_is_refused(tmp_path: Path) -> None:
    folder, _ = packed_folder(tmp_path, "awq")

    def quantize_embedding(tensors: Tensors) -> None:
        del tensors["model.embed_tokens.weight"]
        parts = pack(random_codes(320, 128, seed=1), "awq")
        tensors.update({f"model.embed_tokens.{k}": t for k, t in parts.items()})

    with pytest.raises(UnsupportedModelError, match="embedding is quantized"):
        open_checkpoint(edit_tensors(folder, quantize_embedding))


def test_quantized_head_is_read(tmp_path: Path) -> None:
    folder, _ = packed_folder(tmp_path, "awq")
    head = random_codes(320, 128, seed=2)

    def quantize_head(tensors: Tensors) -> None:
        del tensors["lm_head.weight"]
        tensors.update({f"lm_head.{k}": t for k, t in pack(head, "awq").items()})

    checkpoint = open_checkpoint(edit_tensors(folder, quantize_head))
    assert equal(checkpoint.weight("lm_head.weight"), head)


@pytest.mark.parametrize("packed_format", PACKED_FORMATS)
def test_fused_internlm2_as_other_tools_quantize_it(
    tmp_path: Path, packed_format: PackedFormat
) -> None:
    folder = write_tiny_model(tmp_path, "internlm2", attention_bias=True)
    parts = {p: random_codes(rows, 128, seed=rows + ord(p)) for p, rows in QKV_ROWS.items()}
    fused = QuantizedWeight(
        **{
            field: fuse_wqkv(*(getattr(part, field) for part in parts.values()), head_dim=32)
            for field in ("codes", "scales", "zeros")
        }
    )
    stem = "model.layers.1.attention.wqkv."

    def quantize(tensors: Tensors) -> None:
        del tensors[stem + "weight"]
        tensors.update({stem + k: t for k, t in pack(fused, packed_format).items()})

    edit_tensors(folder, quantize)
    edit_config(folder, quantization_config=write_quantization(packed_format, ["output"]))
    checkpoint = open_checkpoint(folder)
    for part, weight in parts.items():
        name = f"model.layers.1.self_attn.{part}_proj.weight"
        assert checkpoint.shape(name) == (weight.out_features, 128)
        assert equal(checkpoint.weight(name), weight)
    assert checkpoint.tensor("model.layers.1.self_attn.k_proj.bias").shape == (64,)


QKV_ROWS = {"q": 128, "k": 64, "v": 64}
