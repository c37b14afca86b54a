"""The gated feed-forward layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from awqkit.checkpoint.decoder_config import Activation
from awqkit.decoder import activate
from awqkit_runtime.kernels.silu_mul import silu_mul
from awqkit_runtime.layers.linear import FusedLinear, LinearWeights, build_linear
from awqkit_runtime.layers.placement import Placement

#: The kernel reads so many numbers at once.
_KERNEL_MULTIPLE = 8


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
        self._in_one_kernel = (
            placement.uses_cuda_kernels
            and placement.fusions.activation
            and activation == "silu"
            and down.in_features % _KERNEL_MULTIPLE == 0
        )

    def forward(self, x: Tensor) -> Tensor:
        if self._in_one_kernel:
            return self.down(silu_mul(self.gate_up.joined(x)))
        gate, up = self.gate_up(x)
        return self.down(activate(gate, self._activation) * up)
