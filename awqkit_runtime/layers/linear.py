"""Linears with a dense or a 4-bit weight, alone or several that read the same input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from awqkit.checkpoint import QuantizedWeight
from awqkit_runtime.kernels.dense_linear import dense_linear
from awqkit_runtime.kernels.w4_linear import pack_w4, w4_linear
from awqkit_runtime.layers.placement import Placement


@dataclass(frozen=True, kw_only=True)
class LinearWeights:
    """A linear as the checkpoint holds it: weight [out, in], bias [out] or None."""

    weight: Tensor | QuantizedWeight
    bias: Tensor | None = None

    @property
    def quantized(self) -> bool:
        return isinstance(self.weight, QuantizedWeight)

    @property
    def out_features(self) -> int:
        weight = self.weight
        return weight.out_features if isinstance(weight, QuantizedWeight) else weight.shape[0]


class DenseLinear(nn.Module):
    """x · Wᵀ + b with a weight of floats."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, placement: Placement) -> None:
        super().__init__()
        self.register_buffer("weight", placement.weight(weight))
        self.register_buffer("bias", None if bias is None else placement.parameter(bias))

    def forward(self, x: Tensor) -> Tensor:
        return dense_linear(x, self.weight, self.bias)


class PackedLinear(nn.Module):
    """x · Wᵀ + b with a 4-bit weight that the kernel reads as it is."""

    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, placement: Placement) -> None:
        super().__init__()
        self.packed = pack_w4(weight)
        self.register_buffer("bias", None if bias is None else placement.parameter(bias))

    def forward(self, x: Tensor) -> Tensor:
        return w4_linear(x, self.packed, self.bias)


class DequantizingLinear(nn.Module):
    """x · Wᵀ + b with a 4-bit weight that is unpacked for every call, where no kernel exists."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, placement: Placement) -> None:
        super().__init__()
        codes = weight.codes.to(placement.device)
        self.register_buffer("codes", codes[:, ::2] | (codes[:, 1::2] << 4))
        self.register_buffer("scales", weight.scales.to(placement.device))
        self.register_buffer("zeros", weight.zeros.to(placement.device))
        self.register_buffer("bias", None if bias is None else placement.parameter(bias))

    def forward(self, x: Tensor) -> Tensor:
        codes = torch.stack((self.codes & 0xF, self.codes >> 4), dim=-1).flatten(1)
        weight = QuantizedWeight(codes=codes, scales=self.scales, zeros=self.zeros)
        return dense_linear(x, weight.dequantize(x.dtype), self.bias)


def build_linear(linear: LinearWeights, placement: Placement) -> nn.Module:
    """The module that computes a linear on the placement's device: x [..., in] → [..., out]."""
    weight, bias = linear.weight, linear.bias
    if not isinstance(weight, QuantizedWeight):
        return DenseLinear(weight, bias, placement)
    if placement.device.type == "cpu":
        return PackedLinear(weight, bias, placement)
    return DequantizingLinear(weight, bias, placement)


class FusedLinear(nn.Module):
    """Linears that read the same input: x [..., in] → one output for each, in their order.

    Neighbours of one kind become a single matrix; a layer may still mix 4-bit and dense ones.
    """

    def __init__(self, linears: Sequence[LinearWeights], placement: Placement) -> None:
        super().__init__()
        runs = [list(run) for _, run in groupby(linears, _kind)]
        self.parts = nn.ModuleList(build_linear(_stack(run), placement) for run in runs)
        self._sizes = [[linear.out_features for linear in run] for run in runs]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [
            y
            for part, sizes in zip(self.parts, self._sizes, strict=True)
            for y in part(x).split_with_sizes(sizes, dim=-1)
        ]


def _kind(linear: LinearWeights) -> tuple[bool, bool]:
    return linear.quantized, linear.bias is None


def _stack(run: Sequence[LinearWeights]) -> LinearWeights:
    """Linears of one kind as one with all their outputs."""
    if len(run) == 1:
        return run[0]
    biases = [linear.bias for linear in run if linear.bias is not None]
    bias = torch.cat(biases) if biases else None
    quantized = [x.weight for x in run if isinstance(x.weight, QuantizedWeight)]
    if not quantized:
        dense = [x.weight for x in run if isinstance(x.weight, Tensor)]
        return LinearWeights(weight=torch.cat(dense), bias=bias)
    weight = QuantizedWeight(
        codes=torch.cat([weight.codes for weight in quantized]),
        scales=torch.cat([weight.scales for weight in quantized]),
        zeros=torch.cat([weight.zeros for weight in quantized]),
    )
    return LinearWeights(weight=weight, bias=bias)
