"""The integers of one quantized linear, independent of how a format packs them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.checkpoint.layout import BITS, GROUP_SIZE


@dataclass(frozen=True)
class QuantizedWeight:
    """w[o, i] = (codes[o, i] - zeros[o, i // 128]) * scales[o, i // 128].

    codes: uint8 [out, in], 0…15.  scales: float16 [out, in/128].  zeros: uint8 [out, in/128], 0…15.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    @property
    def out_features(self) -> int:
        return self.codes.shape[0]

    @property
    def in_features(self) -> int:
        return self.codes.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes once packed: codes, zero points and scales."""
        packed = (self.codes.numel() + self.zeros.numel()) * BITS // 8
        return packed + self.scales.nbytes

    def to(self, device: torch.device) -> QuantizedWeight:
        """The same weight on a device."""
        return QuantizedWeight(
            codes=self.codes.to(device), scales=self.scales.to(device), zeros=self.zeros.to(device)
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in]: computed in float32, where the product is exact, then rounded to dtype."""
        grouped = self.codes.view(self.out_features, -1, GROUP_SIZE).float()
        weight = (grouped - self.zeros.unsqueeze(-1).float()) * self.scales.unsqueeze(-1).float()
        return weight.view(self.out_features, self.in_features).to(dtype)
