"""The gated feed-forward layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from awqkit.checkpoint.decoder_config import Activation
from awqkit.decoder import activate
from awqkit_runtime.layers.linear import FusedLinear, LinearWeights, build_linear
from awqkit_runtime.layers.placement import Placement


class GatedMLP(nn.Module):
    """down(activation(gate(x)) · up(x)): x [T, hidden] → [T, hidden]."""

    def __init__(
        self,
        gate_up: Sequence[LinearWeights],
        down: LinearWeights,
        placement: Placement,
        *,
        activation: Activation,
    ) -> None:
        super().__init__()
        self._activation = activation
        self.gate_up = FusedLinear(gate_up, placement)
        self.down = build_linear(down, placement)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x)
        return self.down(activate(gate, self._activation) * up)
