"""Decode attention of nothing but torch operations, so that they can be recorded as a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit_runtime.cache.page_format import PAGE_TOKENS
from awqkit_runtime.cache.pool import PagePool


class TensorAttention:
    """As DecodeAttention. Idle rows write into the pool's last page, which must be nobody's.

    Rows may always be of one sequence.
    """

    def __init__(
        self,
        pool: PagePool,
        page_table: Tensor,
        positions: Tensor,
        *,
        config: DecoderConfig,
        steady: bool = False,
    ) -> None:
        self._pool = pool
        self._table = page_table.clamp(0, pool.num_pages - 1).long()
        self._positions = positions
        self._config = config

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._pool.append(layer, k, v, self._new_slots())
        q = self._pool.queries(layer, q)
        rows, heads, _ = q.shape
        places = torch.arange(self._table.shape[1] * PAGE_TOKENS)
        slots = self._table[:, places // PAGE_TOKENS] * PAGE_TOKENS + places % PAGE_TOKENS
        keys, values = self._pool.gather(layer, slots.flatten())
        seen = places <= self._positions[:, None]
        window = self._config.window(layer)
        if window is not None:
            seen = seen & (places > self._positions[:, None] - window)
        group = heads // keys.shape[1]
        keys, values = (
            torch.where(seen[..., None, None], x.unflatten(0, (rows, -1)), 0.0)
            .float()
            .repeat_interleave(group, dim=2)
            for x in (keys, values)
        )
        scores = torch.einsum("rhd,rshd->rhs", q.float(), keys) * self._config.softmax_scale
        cap = self._config.attention_softcap
        if cap is not None:
            scores = cap * (scores / cap).tanh()
        shares = scores.masked_fill(~seen[:, None], -1e30).softmax(dim=-1)
        return torch.einsum("rhs,rshd->rhd", shares, values).to(q.dtype)

    def _new_slots(self) -> Tensor:
        places = self._positions.clamp(min=0)
        pages = self._table.gather(1, (places // PAGE_TOKENS)[:, None]).squeeze(1)
        idle = self._pool.num_pages * PAGE_TOKENS - 1
        return torch.where(self._positions < 0, idle, pages * PAGE_TOKENS + places % PAGE_TOKENS)
