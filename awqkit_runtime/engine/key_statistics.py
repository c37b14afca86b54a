"""Moments of keys and queries behind the rotary embedding, gathered while a model reads a text."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig
from awqkit_runtime.engine.sampled_text import SampledText
from awqkit_runtime.layers.attention import DenseAttention

#: Channels below this share of the loudest one of their head count as loud as that.
_QUIETEST = 1e-3


class KeyStatistics(DenseAttention):
    """An AttentionState that attends over keys as they are. Every layer must pass it once."""

    def __init__(self, config: DecoderConfig, text: SampledText) -> None:
        rows, tokens = text.ids.shape
        super().__init__(config, batch=rows, length=tokens, device=text.ids.device)
        self._means: list[Tensor] = []
        self._key_spreads: list[Tensor] = []
        self._query_sizes: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys = k.float()
        self._means.append(keys.mean(dim=0))
        self._key_spreads.append(keys.std(dim=0, correction=0))
        queries = q.float().unflatten(1, (k.shape[1], -1))
        self._query_sizes.append(queries.square().mean(dim=(0, 2)).sqrt())
        return super().attend(layer, q, k, v)

    def mean_key(self) -> Tensor:
        """float32 [layers, kv_heads, head_dim]"""
        return torch.stack(self._means)

    def channel_scale(self) -> Tensor:
        """√(spread of keys / size of queries), float32 [layers, kv_heads, head_dim].

        Of each head the geometric mean is 1.
        """
        spread, size = (_floored(torch.stack(x)) for x in (self._key_spreads, self._query_sizes))
        logs = (spread.log() - size.log()) / 2
        return (logs - logs.mean(dim=-1, keepdim=True)).exp()


def _floored(sizes: Tensor) -> Tensor:
    """Positive, and within three orders of magnitude in each head: [..., head_dim]."""
    loudest = sizes.amax(dim=-1, keepdim=True)
    return sizes.maximum(loudest * _QUIETEST).clamp_(min=torch.finfo(sizes.dtype).tiny)
