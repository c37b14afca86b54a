"""Linears alone and fused, dense and 4-bit, against a product in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from awqkit.checkpoint import QuantizedWeight
from awqkit_runtime.layers import linear as linear_module
from awqkit_runtime.layers.linear import (
    DequantizingLinear,
    FusedLinear,
    LinearWeights,
    build_linear,
)
from awqkit_runtime.layers.placement import Placement

CPU = torch.device("cpu")
IN = 256


def random_linear(out: int, *, quantized: bool, bias: bool, seed: int) -> LinearWeights:
    generator = torch.Generator().manual_seed(seed)
    weight: Tensor | QuantizedWeight
    if quantized:
        weight = QuantizedWeight(
            codes=torch.randint(0, 16, (out, IN), dtype=torch.uint8, generator=generator),
            scales=(torch.rand(out, IN // 128, generator=generator) * 0.01).half(),
            zeros=torch.randint(0, 16, (out, IN // 128), dtype=torch.uint8, generator=generator),
        )
    else:
        weight = torch.randn(out, IN, generator=generator) * 0.1
    return LinearWeights(
        weight=weight, bias=torch.randn(out, generator=generator) if bias else None
    )


def exact(x: Tensor, linear: LinearWeights) -> Tensor:
    weight = linear.weight
    dense = weight.dequantize() if isinstance(weight, QuantizedWeight) else weight
    out = x.double() @ dense.double().T
    return out if linear.bias is None else out + linear.bias.double()


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 7])
def test_a_linear_is_exact_in_float32(quantized: bool, bias: bool, rows: int) -> None:
    linear = random_linear(48, quantized=quantized, bias=bias, seed=rows)
    module = build_linear(linear, Placement(device=CPU, dtype=torch.float32))
    x = torch.randn(rows, IN, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(module(x).double(), exact(x, linear), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kinds", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("bias", [False, True])
def test_fused_linears_keep_their_order(kinds: tuple[bool, ...], bias: bool) -> None:
    linears = [
        random_linear(out, quantized=quantized, bias=bias, seed=out)
        for out, quantized in zip((64, 16, 24), kinds, strict=True)
    ]
    module = FusedLinear(linears, Placement(device=CPU, dtype=torch.float32))
    assert len(module.parts) == 1 + sum(a != b for a, b in itertools.pairwise(kinds))
    x = torch.randn(5, IN, generator=torch.Generator().manual_seed(9))
    for out, linear in zip(module(x), linears, strict=True):
        torch.testing.assert_close(out.double(), exact(x, linear), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("panel_rows", [48, 20, 1])
def test_dequantizing_per_call_gives_the_same(
    dtype: torch.dtype, panel_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_module, "_PANEL_ELEMENTS", panel_rows * IN)
    linear = random_linear(48, quantized=True, bias=True, seed=1)
    assert isinstance(linear.weight, QuantizedWeight)
    module = DequantizingLinear(
        linear.weight, linear.bias, Placement(device=CPU, dtype=torch.float32)
    )
    assert module.table.codes.nbytes == 48 * IN // 2
    x = torch.randn(3, IN, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(module(x).double(), exact(x, linear), rtol=1e-4, atol=1e-4)
