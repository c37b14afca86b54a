"""The root-mean-square norm as a layer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from awqkit.decoder import rms_norm
from awqkit_runtime.kernels import rms_norm as fused
from awqkit_runtime.layers.placement import Placement

#: The kernel reads so many numbers at once.
_KERNEL_MULTIPLE = 8


class AddingNorm(Protocol):
    """What a residual stream passes: it gets what the layer before gave, and is normed."""

    def after_add(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """x + delta, and its norm; x, delta [T, n]. Without a delta x itself."""


class RMSNorm(nn.Module):
    """rms_norm over the last dimension, in the activations' dtype."""

    weight: Tensor

    def __init__(
        self, weight: Tensor, placement: Placement, *, eps: float, unit_offset: bool
    ) -> None:
        super().__init__()
        self.register_buffer("weight", placement.parameter(weight))
        self.eps = eps
        self.unit_offset = unit_offset
        self._in_one_kernel = (
            placement.uses_cuda_kernels
            and placement.fusions.norm
            and weight.numel() % _KERNEL_MULTIPLE == 0
        )

    def forward(self, x: Tensor) -> Tensor:
        if self._in_one_kernel and x.dim() == 2:
            x = x.contiguous()
            return fused.rms_norm(x, self.weight, self.eps, unit_offset=self.unit_offset)
        return rms_norm(x, self.weight, self.eps, unit_offset=self.unit_offset)

    def after_add(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """x + delta, and its norm; x, delta [T, n]. Without a delta x itself."""
        if delta is None:
            return x, self(x)
        if self._in_one_kernel:
            return fused.add_rms_norm(
                x, delta.contiguous(), self.weight, self.eps, unit_offset=self.unit_offset
            )
        total = x + delta
        return total, self(total)
