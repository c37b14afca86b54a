"""The attention layer: projections, head norms and rotary around a state that attends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from awqkit.checkpoint import DecoderConfig
from awqkit.decoder import apply_rotary
from awqkit_runtime.kernels.attention import attend, plan_attention
from awqkit_runtime.layers.linear import FusedLinear, LinearWeights, build_linear
from awqkit_runtime.layers.norm import RMSNorm
from awqkit_runtime.layers.placement import Placement


class AttentionState(Protocol):
    """What the tokens of one step attend over."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, heads, head_dim], k and v [T, kv_heads, head_dim] after rotary → like q.

        Stores k and v as a side effect where there is a cache.
        """


class DenseAttention:
    """AttentionState without a cache: batch whole sequences of equal length, from position 0."""

    def __init__(
        self, config: DecoderConfig, *, batch: int, length: int, device: torch.device
    ) -> None:
        self._config = config
        self._batch = batch
        windows = {config.window(layer) for layer in range(config.num_layers)}
        self._blocks = {
            window: plan_attention([0], [0], num_queries=length, window=window, device=device)
            for window in windows
        }

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (self._batch, -1)) for x in (q, k, v))
        blocks = self._blocks[self._config.window(layer)]
        return attend(
            q,
            k,
            v,
            blocks,
            scale=self._config.softmax_scale,
            softcap=self._config.attention_softcap,
        ).flatten(0, 1)


class Attention(nn.Module):
    """x [T, hidden] → [T, hidden]. head_norms: those of q and k, or None."""

    def __init__(
        self,
        config: DecoderConfig,
        layer: int,
        qkv: Sequence[LinearWeights],
        o: LinearWeights,
        head_norms: tuple[RMSNorm, RMSNorm] | None,
        placement: Placement,
    ) -> None:
        super().__init__()
        self._layer = layer
        self._head_dim = config.head_dim
        self.qkv = FusedLinear(qkv, placement)
        self.o = build_linear(o, placement)
        self.head_norms = nn.ModuleList(head_norms or ())

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], state: AttentionState) -> Tensor:
        q, k, v = (y.unflatten(-1, (-1, self._head_dim)) for y in self.qkv(x))
        if self.head_norms:
            q_norm, k_norm = self.head_norms
            q, k = q_norm(q), k_norm(k)
        heads = (q.shape[-2], k.shape[-2])
        q, k = apply_rotary(torch.cat((q, k), dim=-2), *rotary).split_with_sizes(heads, dim=-2)
        return self.o(state.attend(self._layer, q, k, v).flatten(1))
