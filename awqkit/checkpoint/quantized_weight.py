"""The integers of one quantized matrix, independent of how a format packs them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from awqkit.checkpoint.layout import BITS, GROUP_SIZE


@dataclass(frozen=True)
class QuantizedWeight:
    """w[o, i] = (codes[o, i] - zeros[o, i // 128]) * scales[o, i // 128].

    codes: uint8 [out, in].  scales: float16 [out, in/128].  zeros: uint8 [out, in/128].
    bits: of codes and zeros: 4 (0…15), or 8 (0…255) for the embedding and the head.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int = BITS

    @property
    def out_features(self) -> int:
        return self.codes.shape[0]

    @property
    def in_features(self) -> int:
        return self.codes.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes once packed: codes, zero points and scales."""
        packed = (self.codes.numel() + self.zeros.numel()) * self.bits // 8
        return packed + self.scales.nbytes

    def to(self, device: torch.device) -> QuantizedWeight:
        """The same weight on a device."""
        return replace(
            self,
            codes=self.codes.to(device),
            scales=self.scales.to(device),
            zeros=self.zeros.to(device),
        )

    def select(self, rows: Tensor | slice) -> QuantizedWeight:
        """These rows, in their order. rows: int64 [n] on the weight's device, or a slice."""
        return replace(
            self, codes=self.codes[rows], scales=self.scales[rows], zeros=self.zeros[rows]
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in]: computed in float32, where the product is exact, then rounded to dtype."""
        weight = self.codes.view(*self.scales.shape, GROUP_SIZE).float()
        weight.sub_(self.zeros.unsqueeze(-1)).mul_(self.scales.unsqueeze(-1))
        return weight.view(self.out_features, self.in_features).to(dtype)
