"""The mixture of experts as a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from awqkit.checkpoint import ExpertsConfig
from awqkit.decoder import mix_experts
from awqkit_runtime.kernels.dense_linear import dense_linear
from awqkit_runtime.layers.mlp import GatedMLP


class SharedExpert(nn.Module):
    """sigmoid(gate(x)) · mlp(x), which every token passes."""

    def __init__(self, mlp: GatedMLP, gate: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(x)) * self.mlp(x)


class SparseMLP(nn.Module):
    """Experts behind a router, and a shared one where the model has it: [T, hidden] → the same.

    Each expert runs by itself on the tokens that are routed to it; there is no kernel that takes
    all of them at once.
    """

    router: Tensor

    def __init__(
        self,
        config: ExpertsConfig,
        router: Tensor,
        experts: Sequence[GatedMLP],
        shared: SharedExpert | None,
    ) -> None:
        """router: [experts, hidden]."""
        super().__init__()
        self._config = config
        self.register_buffer("router", router)
        self.experts = nn.ModuleList(experts)
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        scores = dense_linear(x, self.router)
        out = mix_experts(x, scores, self._config, lambda expert, part: self.experts[expert](part))
        return out if self.shared is None else out + self.shared(x)
