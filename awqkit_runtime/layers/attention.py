"""The attention layer: projections, head norms and rotary around a state that attends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from awqkit.checkpoint import DecoderConfig
from awqkit.decoder import apply_rotary
from awqkit_runtime.kernels.attention import attend, plan_attention
from awqkit_runtime.kernels.rotary import AttendProjected, HeadNorms, can_rotate, rotary_
from awqkit_runtime.layers.linear import FusedLinear, LinearWeights, build_linear
from awqkit_runtime.layers.norm import RMSNorm
from awqkit_runtime.layers.placement import Placement


class AttentionState(Protocol):
    """What the tokens of one step attend over."""

    @property
    def attend_projected(self) -> AttendProjected | None:
        """Attention that norms, rotates and stores by itself; None: attend() gets finished heads.

        Asked for only where CUDA kernels compute.
        """

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, heads, head_dim], k and v [T, kv_heads, head_dim] after rotary → like q.

        Stores k and v as a side effect where there is a cache.
        """


class DenseAttention:
    """AttentionState without a cache: batch whole sequences of equal length, from position 0."""

    attend_projected = None

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
        self._num_heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self.qkv = FusedLinear(qkv, placement)
        self.o = build_linear(o, placement)
        self._norms = head_norms
        self.head_norms = nn.ModuleList(head_norms or ())
        self._in_one_kernel = placement.uses_cuda_kernels and placement.fusions.rotary

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], state: AttentionState) -> Tensor:
        if not (self._in_one_kernel and can_rotate(rotary[0].shape[-1], self._head_dim)):
            out = state.attend(self._layer, *self._rotated(x, *rotary))
        elif (attend_projected := state.attend_projected) is not None:
            out = attend_projected(self._layer, self.qkv.joined(x), *rotary, self._kernel_norms())
        else:
            out = state.attend(self._layer, *self._rotated_in_place(x, *rotary))
        return self.o(out.flatten(1))

    def _rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """q, k and v of every token, [T, heads, head_dim], where q and k know their position."""
        q, k, v = (y.unflatten(-1, (-1, self._head_dim)) for y in self.qkv(x))
        if self.head_norms:
            q_norm, k_norm = self.head_norms
            q, k = q_norm(q), k_norm(k)
        heads = self._num_heads[:2]
        q, k = apply_rotary(torch.cat((q, k), dim=-2), cos, sin).split_with_sizes(heads, dim=-2)
        return q, k, v

    def _rotated_in_place(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """As _rotated, by one kernel on the joint output of the projections."""
        qkv = self.qkv.joined(x)
        query_heads, key_heads, _ = self._num_heads
        rotary_(
            *(qkv, cos, sin),
            query_heads=query_heads,
            key_heads=key_heads,
            head_dim=self._head_dim,
            norms=self._kernel_norms(),
        )
        heads = qkv.unflatten(-1, (-1, self._head_dim))
        return heads.split_with_sizes(self._num_heads, dim=-2)

    def _kernel_norms(self) -> HeadNorms | None:
        if self._norms is None:
            return None
        query, key = self._norms
        return HeadNorms(
            query=query.weight, key=key.weight, eps=query.eps, unit_offset=query.unit_offset
        )
