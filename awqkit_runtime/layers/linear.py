"""Linears with a dense or a quantized weight, alone or several that read the same input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from awqkit.checkpoint import PackedWeight, QuantizedWeight, pack_weight
from awqkit.checkpoint.layout import WIDE_BITS
from awqkit_runtime.kernels.dense_linear import dense_linear
from awqkit_runtime.kernels.packed_w4 import unpack_rows as unpack_cpu_rows
from awqkit_runtime.kernels.w4_linear import pack_w4, w4_linear
from awqkit_runtime.kernels.w4_repack import repack
from awqkit_runtime.kernels.w4_tiled_linear import prepare, w4_tiled_linear
from awqkit_runtime.kernels.w4_tiles import unpack_rows as unpack_tile_rows
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.layers.quantized_table import QuantizedTable
from awqkit_runtime.layers.wide_linear import WideLinear

#: Weights that DequantizingLinear unpacks at once, and the bytes that they take meanwhile: a code,
#: and the steps of its arithmetic in float32.
_PANEL_ELEMENTS = 2**24
UNPACKED_BYTES = _PANEL_ELEMENTS * (1 + 3 * 4)


@dataclass(frozen=True, kw_only=True)
class LinearWeights:
    """A linear as the checkpoint holds it: weight [out, in], bias [out] or None."""

    weight: Tensor | QuantizedWeight | PackedWeight
    bias: Tensor | None = None

    @property
    def bits(self) -> int | None:
        """Of a code; None of a dense weight."""
        return None if isinstance(self.weight, Tensor) else self.weight.bits

    @property
    def out_features(self) -> int:
        weight = self.weight
        return weight.shape[0] if isinstance(weight, Tensor) else weight.out_features

    @property
    def in_features(self) -> int:
        weight = self.weight
        return weight.shape[1] if isinstance(weight, Tensor) else weight.in_features


class DenseLinear(nn.Module):
    """x · Wᵀ + b with a weight of floats."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, weights: Sequence[Tensor], bias: Tensor | None, placement: Placement
    ) -> None:
        """weights: one below the other."""
        super().__init__()
        self.register_buffer("weight", placement.stacked_weight(weights))
        self.register_buffer("bias", _parameter(bias, placement))

    def forward(self, x: Tensor) -> Tensor:
        return dense_linear(x, self.weight, self.bias)


class PackedLinear(nn.Module):
    """x · Wᵀ + b with a 4-bit weight that the CPU kernel reads as it is."""

    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, placement: Placement) -> None:
        super().__init__()
        self.packed = pack_w4(weight)
        self.register_buffer("bias", _parameter(bias, placement))

    def rows(self, which: Tensor) -> QuantizedWeight:
        """Those of the weight. which: int64 [n]."""
        return unpack_cpu_rows(self.packed, which)

    def forward(self, x: Tensor) -> Tensor:
        return w4_linear(x, self.packed, self.bias)


class TiledLinear(nn.Module):
    """x · Wᵀ + b with 4-bit weights that the CUDA kernels read as they are."""

    bias: Tensor | None

    def __init__(
        self, weights: Sequence[PackedWeight], bias: Tensor | None, placement: Placement
    ) -> None:
        super().__init__()
        self.tiles = repack(weights, placement.device)
        self.register_buffer("bias", _parameter(bias, placement))
        self._bias_in_kernel = placement.fusions.bias
        prepare(self.tiles)

    def rows(self, which: Tensor) -> QuantizedWeight:
        """Those of the weights together. which: int64 [n]."""
        return unpack_tile_rows(self.tiles, which)

    def forward(self, x: Tensor) -> Tensor:
        if self._bias_in_kernel or self.bias is None:
            return w4_tiled_linear(x, self.tiles, self.bias)
        return w4_tiled_linear(x, self.tiles) + self.bias


class DequantizingLinear(nn.Module):
    """x · Wᵀ + b with a 4-bit weight that is unpacked for every call, where no kernel exists."""

    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, placement: Placement) -> None:
        super().__init__()
        self.table = QuantizedTable(weight, placement)
        self.register_buffer("bias", _parameter(bias, placement))

    def rows(self, which: Tensor) -> QuantizedWeight:
        """Those of the weight. which: int64 [n]."""
        return self.table.rows(which)

    def forward(self, x: Tensor) -> Tensor:
        rows = max(1, _PANEL_ELEMENTS // x.shape[-1])
        panels = (
            self._panel(x, slice(start, start + rows))
            for start in range(0, self.table.num_rows, rows)
        )
        return torch.cat(list(panels), dim=-1)

    def _panel(self, x: Tensor, rows: slice) -> Tensor:
        """These rows' outputs."""
        bias = None if self.bias is None else self.bias[rows]
        return dense_linear(x, self.table.rows(rows).dequantize(x.dtype), bias)


def build_linear(linear: LinearWeights, placement: Placement) -> nn.Module:
    """The module that computes a linear on the placement's device: x [..., in] → [..., out]."""
    return _build_joint([linear], placement)


class FusedLinear(nn.Module):
    """Linears that read the same input: x [..., in] → one output for each, in their order.

    Neighbours of one kind become a single matrix; a layer may still mix 4-bit and dense ones.
    """

    def __init__(self, linears: Sequence[LinearWeights], placement: Placement) -> None:
        super().__init__()
        runs = [list(run) for _, run in groupby(linears, _kind)]
        self.parts = nn.ModuleList(_build_joint(run, placement) for run in runs)
        self._sizes = [[linear.out_features for linear in run] for run in runs]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [
            y
            for part, sizes in zip(self.parts, self._sizes, strict=True)
            for y in part(x).split_with_sizes(sizes, dim=-1)
        ]

    def joined(self, x: Tensor) -> Tensor:
        """All outputs side by side, [..., sum of out]."""
        outputs = [part(x) for part in self.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def _kind(linear: LinearWeights) -> tuple[int | None, bool]:
    return linear.bits, linear.bias is None


def _build_joint(run: Sequence[LinearWeights], placement: Placement) -> nn.Module:
    """Linears of one kind as one with all their outputs."""
    biases = [linear.bias for linear in run if linear.bias is not None]
    bias = torch.cat(biases) if biases else None
    bits = run[0].bits
    if bits is None:
        dense = [linear.weight for linear in run if isinstance(linear.weight, Tensor)]
        return DenseLinear(dense, bias, placement)
    if bits != WIDE_BITS and placement.uses_cuda_kernels:
        return TiledLinear([_packed(linear) for linear in run], bias, placement)
    weight = _stack([_unpacked(linear) for linear in run])
    if bits == WIDE_BITS:
        return WideLinear(weight, bias, placement)
    if placement.device.type == "cpu":
        return PackedLinear(weight, bias, placement)
    return DequantizingLinear(weight, bias, placement)


def _packed(linear: LinearWeights) -> PackedWeight:
    weight = linear.weight
    assert not isinstance(weight, Tensor)
    return pack_weight(weight) if isinstance(weight, QuantizedWeight) else weight


def _unpacked(linear: LinearWeights) -> QuantizedWeight:
    weight = linear.weight
    assert not isinstance(weight, Tensor)
    return weight.unpack() if isinstance(weight, PackedWeight) else weight


def _stack(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """The rows of all of them, one after the other."""
    if len(weights) == 1:
        return weights[0]
    return QuantizedWeight(
        codes=torch.cat([weight.codes for weight in weights]),
        scales=torch.cat([weight.scales for weight in weights]),
        zeros=torch.cat([weight.zeros for weight in weights]),
        bits=weights[0].bits,
    )


def _parameter(bias: Tensor | None, placement: Placement) -> Tensor | None:
    return None if bias is None else placement.parameter(bias)
