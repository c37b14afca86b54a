"""Where a model's numbers live and in which types."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The device, and the dtype of the dense weights and of unquantized cache pages."""

    device: torch.device
    dtype: torch.dtype

    @property
    def activation_dtype(self) -> torch.dtype:
        """The dtype between the linears.

        On a CPU always float32: most lack fast 16-bit arithmetic, and it keeps the results of
        a sequence independent of what it is batched with.
        """
        return torch.float32 if self.device.type == "cpu" else self.dtype

    def weight(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self.device, dtype=self.dtype)

    def parameter(self, tensor: Tensor) -> Tensor:
        """A small vector that meets activations elementwise: a bias, a norm's weight."""
        return tensor.to(device=self.device, dtype=self.activation_dtype)
