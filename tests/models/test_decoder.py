"""A decoder of 4-bit weights computes what the same weights give when they are dense."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from awqkit.checkpoint import DecoderConfig, QuantizedWeight
from awqkit.checkpoint.canonical import canonical_shapes, layer_prefix, layer_shapes
from awqkit.checkpoint.layout import is_quantizable
from awqkit_runtime.layers.attention import DenseAttention
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.models.decoder import Decoder, DecoderLayer

Weights = dict[str, Tensor | QuantizedWeight]

CONFIG = DecoderConfig(
    hidden_size=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=384,
    vocab_size=200,
    max_position_embeddings=128,
    norm_eps=1e-5,
    qkv_bias=True,
    qk_norm=True,
)


def random_weights(quantized_share: float, seed: int) -> Weights:
    """Canonical weights; each linear of a layer is 4-bit with the probability quantized_share."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    weights: Weights = {}
    for name, shape in canonical_shapes(CONFIG).items():
        if "proj.weight" in name and is_quantizable(*shape) and rng.random() < quantized_share:
            groups = (shape[0], shape[1] // 128)
            weights[name] = QuantizedWeight(
                codes=torch.randint(0, 16, shape, dtype=torch.uint8, generator=generator),
                scales=(torch.rand(groups, generator=generator) * 0.02).half(),
                zeros=torch.randint(6, 10, groups, dtype=torch.uint8, generator=generator),
            )
        else:
            weights[name] = torch.randn(shape, generator=generator) * 0.1
    return weights


def build(weights: Weights, dtype: torch.dtype = torch.float32, *, device: str = "cpu") -> Decoder:
    placement = Placement(device=torch.device(device), dtype=dtype)
    layers = [
        DecoderLayer(
            CONFIG,
            layer,
            {name: weights[layer_prefix(layer) + name] for name in layer_shapes(CONFIG, layer)},
            placement,
        )
        for layer in range(CONFIG.num_layers)
    ]
    return Decoder(CONFIG, layers, weights, placement, session_len=128)


def logits(decoder: Decoder, ids: Tensor) -> Tensor:
    batch, length = ids.shape
    state = DenseAttention(CONFIG, batch=batch, length=length, device=decoder.device)
    positions = torch.arange(length, device=decoder.device).repeat(batch)
    return decoder.logits(decoder.hidden(ids.flatten(), positions, state))


def widened(weight: Tensor | QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """What a placement of this dtype on a CPU computes with: only matrices are rounded to it."""
    if isinstance(weight, QuantizedWeight):
        return weight.dequantize()
    return weight.to(dtype).float() if weight.dim() == 2 else weight


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_mean_what_they_dequantize_to(share: float, dtype: torch.dtype) -> None:
    weights = random_weights(share, seed=int(share * 10))
    dense: Weights = {name: widened(w, dtype) for name, w in weights.items()}
    ids = torch.randint(0, 200, (2, 30), generator=torch.Generator().manual_seed(1))
    got, expected = logits(build(weights, dtype), ids), logits(build(dense), ids)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_activations_of_a_bf16_model_are_float32_on_a_cpu() -> None:
    decoder = build(random_weights(0.5, seed=2), torch.bfloat16)
    state = DenseAttention(CONFIG, batch=1, length=4, device=decoder.device)
    hidden = decoder.hidden(torch.arange(4), torch.arange(4), state)
    assert hidden.dtype == torch.float32
    assert decoder.dtype == torch.bfloat16
    assert decoder.embedding.weight.dtype == torch.bfloat16


def test_a_tied_head_shares_the_embeddings_memory() -> None:
    weights = random_weights(0.0, seed=3)
    del weights["lm_head.weight"]
    decoder = build(weights)
    assert decoder.head.weight.data_ptr() == decoder.embedding.weight.data_ptr()


class OperationNames(TorchDispatchMode):
    """Those that torch is asked for, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_the_embedding_lies_between_the_angles_and_the_layers() -> None:
    """Kernels read angles ahead of their predecessors, but not those of one that is done."""
    decoder = build(random_weights(0.0, seed=4))
    ids = torch.arange(4)
    state = DenseAttention(CONFIG, batch=1, length=4, device=decoder.device)
    with OperationNames() as operations:
        decoder.hidden(ids, ids, state)
    last_angle = max(operations.names.index(name) for name in ("cos", "sin"))
    assert last_angle < operations.names.index("embedding")
    assert {"cos", "sin"}.isdisjoint(operations.names[last_angle + 1 :])
