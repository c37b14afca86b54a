"""8-bit codes on disk: as compressed-tensors packs them, and only where they can be run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from awqkit.checkpoint import (
    CheckpointError,
    UnsupportedModelError,
    open_checkpoint,
    pack_weight,
    write_checkpoint,
)
from awqkit.checkpoint.canonical import EMBEDDING
from awqkit.checkpoint.fingerprint import fingerprint
from awqkit.checkpoint.packing import pack, packed_shapes, unpack
from tests.checkpoint.folders import (
    edit_config,
    edit_tensors,
    equal,
    quantized_weights,
    random_codes,
)
from tests.tiny_models import write_tiny_model

pack_to_int32 = pytest.importorskip(
    "compressed_tensors.compressors.pack_quantized.helpers"
).pack_to_int32


@pytest.mark.parametrize("bits", [4, 8])
def test_tensors_are_those_of_the_format_and_come_back(bits: int) -> None:
    weight = random_codes(24, 256, seed=0, bits=bits)
    tensors = pack(weight, "compressed-tensors")
    shapes = {suffix: tuple(tensor.shape) for suffix, tensor in tensors.items()}
    assert shapes == packed_shapes("compressed-tensors", 24, 256, bits=bits)
    middle = 2 ** (bits - 1)  # Theirs are signed.
    theirs = pack_to_int32((weight.codes.short() - middle).to(torch.int8), bits)
    assert torch.equal(tensors["weight_packed"], theirs)
    zeros = (weight.zeros.short() - middle).to(torch.int8)
    theirs = pack_to_int32(zeros, bits, packed_dim=0)
    assert torch.equal(tensors["weight_zero_point"], theirs)
    assert equal(unpack(tensors, "compressed-tensors", bits=bits), weight)
    assert equal(pack_weight(weight).unpack(), weight)
    assert weight.nbytes == sum(t.nbytes for n, t in tensors.items() if n != "weight_shape")


def test_without_zero_points_the_middle_code_is_zero() -> None:
    tensors = pack(random_codes(24, 256, seed=0, bits=8), "compressed-tensors")
    del tensors["weight_zero_point"]
    assert (unpack(tensors, "compressed-tensors", bits=8).zeros == 128).all()


def test_awq_has_no_place_for_them() -> None:
    with pytest.raises(ValueError, match="4 bits, not 8"):
        pack(random_codes(24, 256, seed=0, bits=8), "awq")


def test_a_fingerprint_sees_the_high_half_of_a_code() -> None:
    weight = random_codes(24, 256, seed=0, bits=8)
    before = fingerprint(weight)
    weight.codes[3, 7] ^= 128
    assert fingerprint(weight) != before


def written(folder: Path, *, tied: bool = False) -> Path:
    source = open_checkpoint(write_tiny_model(folder / "in", tie_word_embeddings=tied))
    weights = dict(quantized_weights(source))
    weights[EMBEDDING] = random_codes(320, 128, seed=0, bits=8)
    out = folder / "out"
    write_checkpoint(out, weights.items(), source=source, format="compressed-tensors")
    return out


def quantization_section(folder: Path) -> dict:
    section: dict = json.loads((folder / "config.json").read_text())["quantization_config"]
    return section


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_gives_back_what_was_written(tmp_path: Path, tied: bool) -> None:
    checkpoint = open_checkpoint(written(tmp_path, tied=tied))
    assert checkpoint.bits(EMBEDDING) == 8
    assert checkpoint.bits("model.layers.0.mlp.up_proj.weight") == 4
    assert checkpoint.bits("model.norm.weight") is None
    assert equal(checkpoint.quantized(EMBEDDING), random_codes(320, 128, seed=0, bits=8))
    assert checkpoint.raw_config["dtype"] == "bfloat16"


def test_symmetric_codes_of_others_are_read(tmp_path: Path) -> None:
    out = written(tmp_path)
    left_out = "model.embed_tokens.weight_zero_point"
    edit_tensors(out, lambda found: {n: t for n, t in found.items() if n != left_out})
    section = quantization_section(out)
    section["config_groups"]["group_0"]["weights"]["symmetric"] = True
    edit_config(out, quantization_config=section)
    assert (open_checkpoint(out).quantized(EMBEDDING).zeros == 128).all()


def test_wide_linears_in_the_blocks_are_refused(tmp_path: Path) -> None:
    out, stem = written(tmp_path), "model.layers.0.mlp.up_proj."

    def widen(tensors):
        wide = pack(random_codes(256, 128, seed=0, bits=8), "compressed-tensors")
        return tensors | {stem + suffix: tensor for suffix, tensor in wide.items()}

    edit_tensors(out, widen)
    with pytest.raises(UnsupportedModelError, match=r"up_proj.weight is stored in 8 bits"):
        open_checkpoint(out)


def test_a_width_that_the_config_does_not_name_is_no_width(tmp_path: Path) -> None:
    out = written(tmp_path)
    section = quantization_section(out)
    del section["config_groups"]["group_0"]
    edit_config(out, quantization_config=section)
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight_packed has shape \[320, 32\]"):
        open_checkpoint(out)


def test_all_linears_in_8_bits_are_refused_by_the_config(tmp_path: Path) -> None:
    out = written(tmp_path)
    section = quantization_section(out)
    section["config_groups"]["group_1"]["weights"]["num_bits"] = 8
    edit_config(out, quantization_config=section)
    with pytest.raises(UnsupportedModelError, match="num_bits is 8"):
        open_checkpoint(out)


def test_a_stray_head_beside_a_quantized_tied_embedding_is_refused(tmp_path: Path) -> None:
    out = written(tmp_path, tied=True)
    tensors = {"lm_head.weight": torch.zeros(320, 128)}
    edit_tensors(out, lambda found: found | tensors)
    with pytest.raises(CheckpointError, match="which is quantized, but"):
        open_checkpoint(out)


def test_an_embedding_packed_by_awq_tools_is_refused(tmp_path: Path) -> None:
    source = open_checkpoint(write_tiny_model(tmp_path / "in"))
    write_checkpoint(tmp_path / "out", quantized_weights(source), source=source, format="awq")
    packed = pack(random_codes(320, 128, seed=0), "awq")

    def swap(tensors):
        del tensors["model.embed_tokens.weight"]
        return tensors | {f"model.embed_tokens.{suffix}": t for suffix, t in packed.items()}

    edit_tensors(tmp_path / "out", swap)
    with pytest.raises(UnsupportedModelError, match="read in compressed-tensors form alone"):
        open_checkpoint(tmp_path / "out")
