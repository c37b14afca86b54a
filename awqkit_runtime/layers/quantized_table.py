"""A quantized matrix whose rows are unpacked as they are asked for."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from awqkit.checkpoint import QuantizedWeight
from awqkit.checkpoint.layout import BITS, GROUP_SIZE
from awqkit_runtime.layers.placement import Placement

#: The scale and the zero point of a row and a group: float16 and a byte.
_GROUP_BYTES = 3


class QuantizedTable(nn.Module):
    """codes: uint8 [rows, columns], of 4 bits two in a byte.  scales, zeros: as QuantizedWeight."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, weight: QuantizedWeight, placement: Placement) -> None:
        super().__init__()
        self.bits = weight.bits
        codes = weight.codes.to(placement.device)
        if weight.bits == BITS:
            codes = codes[:, ::2] | (codes[:, 1::2] << 4)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", weight.scales.to(placement.device))
        self.register_buffer("zeros", weight.zeros.to(placement.device))

    @property
    def num_rows(self) -> int:
        return self.codes.shape[0]

    def rows(self, which: Tensor | slice) -> QuantizedWeight:
        """which: int64 [n], or a slice."""
        part = QuantizedWeight(
            codes=self.codes, scales=self.scales, zeros=self.zeros, bits=self.bits
        ).select(which)
        if self.bits != BITS:
            return part
        pairs = torch.stack((part.codes & 0xF, part.codes >> 4), dim=-1)
        return replace(part, codes=pairs.flatten(1))


def table_bytes(rows: int, columns: int, bits: int) -> int:
    """Of a QuantizedTable."""
    return rows * columns // GROUP_SIZE * (GROUP_SIZE * bits // 8 + _GROUP_BYTES)
