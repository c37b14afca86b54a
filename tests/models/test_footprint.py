"""The bytes that a config promises are those that loaded models take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit.checkpoint import open_checkpoint, write_checkpoint
from awqkit_runtime.layers.linear import PackedLinear, TiledLinear
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.models.footprint import loaded_bytes, packable
from awqkit_runtime.models.loader import load_decoder
from tests.checkpoint.folders import quantized_weights, write_quantized_ends
from tests.tiny_models import write_tiny_model

#: q, k and v have 72 rows together, which the CPU's layout pads to 80.
PADDED = {
    "family": "llama",
    "hidden_size": 384,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 8,
}


def measured_bytes(decoder: Decoder) -> int:
    """Of everything that is kept except the rotary frequencies, tied tensors once."""
    buffers = {
        buffer.data_ptr(): buffer.nbytes
        for name, buffer in decoder.named_buffers()
        if "rotary" not in name
    }
    packed = [m.packed.nbytes for m in decoder.modules() if isinstance(m, PackedLinear)]
    tiled = [m.tiles.nbytes for m in decoder.modules() if isinstance(m, TiledLinear)]
    return sum(buffers.values()) + sum(packed) + sum(tiled)


@pytest.mark.parametrize(
    "shape",
    [
        {"family": "llama"},
        {"family": "llama", "tie_word_embeddings": True, "num_key_value_heads": 4},
        {"family": "qwen2", "intermediate_size": 320},
        {"family": "qwen3", "head_dim": 16},
        {"family": "gemma2"},
        {"family": "qwen2_moe", "mlp_only_layers": [0]},
    ],
    ids=lambda shape: "-".join(str(value) for value in shape.values()),
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_plain_model(tmp_path: Path, shape: dict[str, Any], dtype: str) -> None:
    decoder = load_decoder(write_tiny_model(tmp_path, **shape), dtype=dtype)
    promised = loaded_bytes(decoder.config, lambda name: None, decoder.placement)
    assert promised == measured_bytes(decoder)


@pytest.mark.parametrize(
    "shape",
    [
        {"family": "llama"},
        {"family": "qwen2", "intermediate_size": 320},  # down_proj stays dense
        PADDED,
        {"family": "phi3"},
        {"family": "mixtral"},
    ],
    ids=["all", "some-dense", "padded-rows", "fused", "experts"],
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_int4_model_and_its_estimate(tmp_path: Path, shape: dict[str, Any], device: str) -> None:
    source = open_checkpoint(write_tiny_model(tmp_path / "plain", **shape))
    write_checkpoint(tmp_path / "int4", quantized_weights(source), source=source, format="awq")
    checkpoint = open_checkpoint(tmp_path / "int4")
    decoder = load_decoder(checkpoint, device=device, dtype="bfloat16")
    config, placement = decoder.config, decoder.placement
    assert loaded_bytes(config, checkpoint.bits, placement) == measured_bytes(decoder)
    assert loaded_bytes(config, packable(config), placement) == measured_bytes(decoder)


@pytest.mark.filterwarnings("ignore:There is no kernel yet.*a head in 8 bits")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_quantized_ends(tmp_path: Path, bits: int, tied: bool, device: str, dtype: str) -> None:
    folder = write_quantized_ends(tmp_path, embedding_bits=bits, head_bits=12 - bits, tied=tied)
    checkpoint = open_checkpoint(folder)
    decoder = load_decoder(checkpoint, device=device, dtype=dtype)
    config, placement = decoder.config, decoder.placement
    assert loaded_bytes(config, checkpoint.bits, placement) == measured_bytes(decoder)


def test_a_gpu_keeps_tiles_and_norms_in_the_models_dtype(tmp_path: Path) -> None:
    config = open_checkpoint(write_tiny_model(tmp_path, num_hidden_layers=1)).config
    gpu = Placement(device=torch.device("cuda"), dtype=torch.bfloat16)
    tables, norms = 2 * 320 * 128, 3 * 128
    linears = 128 * (128 + 2 * 64) + 128 * 128 + 3 * 128 * 256
    assert loaded_bytes(config, lambda name: None, gpu) == 2 * (tables + norms + linears)
    # 64 bytes of codes, an FP16 scale and a BF16 zero point for 128 weights.
    packed = linears // 128 * 68
    assert loaded_bytes(config, packable(config), gpu) == 2 * (tables + norms) + packed
    # Without our kernels the zero point is a byte.
    in_torch = replace(gpu, has_cuda_kernels=False)
    packed = linears // 128 * 67
    assert loaded_bytes(config, packable(config), in_torch) == 2 * (tables + norms) + packed
