"""The root-mean-square norm as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from awqkit.decoder import rms_norm
from awqkit_runtime.layers.placement import Placement


class RMSNorm(nn.Module):
    """rms_norm over the last dimension, in the activations' dtype."""

    weight: Tensor

    def __init__(
        self, weight: Tensor, placement: Placement, *, eps: float, unit_offset: bool
    ) -> None:
        super().__init__()
        self.register_buffer("weight", placement.parameter(weight))
        self._eps = eps
        self._unit_offset = unit_offset

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self._eps, unit_offset=self._unit_offset)
