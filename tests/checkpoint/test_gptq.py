"""GPTQ checkpoints, packed here bit by bit as their tools do, read and repacked without loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from awqkit.checkpoint import (
    CheckpointError,
    QuantizedWeight,
    UnsupportedModelError,
    open_checkpoint,
)
from awqkit.cli import convert
from tests.calibration.calibration_tokenizers import byte_tokenizer
from tests.checkpoint.folders import Tensors, edit_config, edit_tensors, equal, quantized_weights
from tests.tiny_models import write_tiny_model
from tests.tokenizer_files import write_tokenizer

UP = "model.layers.0.mlp.up_proj."
CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}


def nibbles_along_columns(values: np.ndarray) -> Tensor:
    """[rows, 8·n] of 0…15 → int32 [rows, n], the first value in the lowest bits."""
    words = np.zeros((values.shape[0], values.shape[1] // 8), dtype=np.uint32)
    for place in range(8):
        words |= values[:, place::8].astype(np.uint32) << np.uint32(4 * place)
    return torch.from_numpy(words.view(np.int32).copy())


def gptq_tensors(weight: QuantizedWeight, *, version: int) -> Tensors:
    codes, zeros = weight.codes.numpy(), weight.zeros.numpy().astype(np.int64)
    stored_zeros = (zeros - 1 if version == 1 else zeros) & 15
    return {
        "qweight": nibbles_along_columns(codes).T.contiguous(),
        "qzeros": nibbles_along_columns(stored_zeros.T),
        "scales": weight.scales.T.contiguous(),
        "g_idx": torch.tensor([column // 128 for column in range(weight.in_features)]).int(),
    }


def gptq_folder(
    folder: Path, *, version: int = 1, zeros: int | None = None, **settings: Any
) -> tuple[Path, dict[str, Tensor | QuantizedWeight]]:
    """zeros: of every group; None draws them from what the version can hold."""
    write_tiny_model(folder, dtype=torch.float16)
    weights: dict[str, Tensor | QuantizedWeight] = {}
    tensors: Tensors = {}
    for name, weight in quantized_weights(open_checkpoint(folder), dtype=torch.float16):
        if not isinstance(weight, QuantizedWeight):
            weights[name] = tensors[name] = weight
            continue
        drawn = weight.zeros.clamp(min=1) if version == 1 else weight.zeros
        drawn = drawn if zeros is None else torch.full_like(drawn, zeros)
        weights[name] = QuantizedWeight(codes=weight.codes, scales=weight.scales, zeros=drawn)
        stem = name.removesuffix("weight")
        packed = gptq_tensors(weights[name], version=version)
        tensors |= {stem + suffix: tensor for suffix, tensor in packed.items()}
    save_file(tensors, folder / "model.safetensors")
    write_tokenizer(folder, byte_tokenizer())
    section = CONFIG | {"checkpoint_format": "gptq" if version == 1 else "gptq_v2"} | settings
    return edit_config(folder, quantization_config=section), weights


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("zeros", [None, 8])
def test_reads_both_versions(tmp_path: Path, version: int, zeros: int | None) -> None:
    folder, weights = gptq_folder(tmp_path, version=version, zeros=zeros, sym=zeros is not None)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "gptq"
    assert all(equal(checkpoint.weight(name), weight) for name, weight in weights.items())


@pytest.mark.parametrize("form", ["awq", "compressed-tensors"])
@pytest.mark.parametrize("version", [1, 2])
def test_repacks_without_loss(tmp_path: Path, form: str, version: int) -> None:
    folder, weights = gptq_folder(tmp_path / "gptq", version=version)
    out = tmp_path / "out"
    result = CliRunner().invoke(convert, [str(folder), str(out), "--format", form])
    assert result.exit_code == 0, result.output
    written = open_checkpoint(out, model_format=form)
    assert all(equal(written.weight(name), weight) for name, weight in weights.items())
    section = json.loads((out / "config.json").read_text())["quantization_config"]
    assert section["quant_method"] == form
    assert not (out / "quantize_config.json").exists()


def test_settings_in_a_file_of_their_own(tmp_path: Path) -> None:
    folder, weights = gptq_folder(tmp_path)
    edit_config(folder, quantization_config=...)
    sidecar = {"bits": 4, "group_size": 128, "desc_act": False, "sym": False}
    (folder / "quantize_config.json").write_text(json.dumps(sidecar))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "gptq"
    assert all(equal(checkpoint.weight(name), weight) for name, weight in weights.items())


@pytest.mark.parametrize(("packing", "version"), [("auto_gptq", 1), ("gptqmodel", 2)])
def test_auto_round_packs_as_gptq_tools_do(tmp_path: Path, packing: str, version: int) -> None:
    folder, weights = gptq_folder(tmp_path / "model", version=version)
    edit_tensors(folder, lambda tensors: {n: t for n, t in tensors.items() if "g_idx" not in n})
    section = {"quant_method": "auto-round", "packing_format": f"auto_round:{packing}"}
    edit_config(folder, quantization_config=section | {"bits": 4, "group_size": 128})
    checkpoint = open_checkpoint(folder)
    assert all(equal(checkpoint.weight(name), weight) for name, weight in weights.items())


def test_desc_act_with_groups_in_order_is_as_good_as_without(tmp_path: Path) -> None:
    folder, weights = gptq_folder(tmp_path, desc_act=True)
    assert equal(open_checkpoint(folder).quantized(UP + "weight"), weights[UP + "weight"])
    edit_tensors(folder, lambda t: {k: v for k, v in t.items() if k != UP + "g_idx"})
    with pytest.raises(CheckpointError, match="g_idx"):
        open_checkpoint(folder)
    edit_config(folder, quantization_config=CONFIG)
    assert equal(open_checkpoint(folder).quantized(UP + "weight"), weights[UP + "weight"])


def test_act_order_is_refused(tmp_path: Path) -> None:
    folder, _ = gptq_folder(tmp_path, desc_act=True)
    name = "model.layers.1.mlp.down_proj.g_idx"

    def shuffle(tensors: Tensors) -> None:
        order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
        tensors[name] = tensors[name][order]

    edit_tensors(folder, shuffle)
    with pytest.raises(UnsupportedModelError, match=rf"{name}.*act-order"):
        open_checkpoint(folder)


def test_zero_point_of_16_is_refused_in_version_1_alone(tmp_path: Path) -> None:
    folder, _ = gptq_folder(tmp_path / "1")

    def raise_zero(tensors: Tensors) -> None:
        tensors[UP + "qzeros"][0, 3] |= 15 << 8

    edit_tensors(folder, raise_zero)
    with pytest.raises(UnsupportedModelError, match=r"up_proj\.qzeros holds a zero point of 16"):
        open_checkpoint(folder)
    second, _ = gptq_folder(tmp_path / "2", version=2, zeros=15)
    assert int(open_checkpoint(second).quantized(UP + "weight").zeros.min()) == 15


def test_surplus_biases_must_be_zeros(tmp_path: Path) -> None:
    folder, weights = gptq_folder(tmp_path)

    def add(tensors: Tensors) -> None:
        tensors[UP + "bias"] = torch.zeros(256).half()

    edit_tensors(folder, add)
    assert equal(open_checkpoint(folder).quantized(UP + "weight"), weights[UP + "weight"])
    edit_tensors(folder, lambda tensors: tensors | {UP + "bias": torch.full((256,), 0.5).half()})
    with pytest.raises(CheckpointError, match=r"up_proj\.bias"):
        open_checkpoint(folder)


def test_scales_beyond_fp16_are_refused(tmp_path: Path) -> None:
    folder, _ = gptq_folder(tmp_path)

    def widen(tensors: Tensors) -> None:
        scales = tensors[UP + "scales"].float()
        scales[0, 0] = 1e6
        tensors[UP + "scales"] = scales

    edit_tensors(folder, widen)
    with pytest.raises(CheckpointError, match="scales that FP16 cannot represent"):
        open_checkpoint(folder).quantized(UP + "weight")
