"""Attention of one new token in every row over paged keys and values, all of it read from tensors.

Which pages a row has and where its token stands are numbers in tensors, so a CUDA graph that was
captured around a step computes other steps when these change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit_runtime.cache.page_format import pages_for
from awqkit_runtime.cache.page_kernels import append_projected, decode, decodes_in_kernels
from awqkit_runtime.cache.paged_attention import PagedAttention, SequenceSpan
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.kernels.decode_places import decode_places
from awqkit_runtime.kernels.rotary import AttendProjected, HeadNorms


class DecodeAttention:
    """AttentionState of steps of decodes alone. The tensors are read anew where layer 0 begins one.

    page_table: int32 [rows, width], the pages of each row's sequence in order; entries
    behind those that its tokens need may hold anything. positions: int64 [rows], of each row's new
    token, which sees itself and all before it; below 0: the row is idle, nothing is stored and its
    output is zeros. Both on the pool's device. No two rows may stand at one place of one page.
    """

    def __init__(
        self, pool: PagePool, page_table: Tensor, positions: Tensor, *, config: DecoderConfig
    ) -> None:
        self._pool = pool
        self._page_table = page_table
        self._positions = positions
        self._config = config
        #: Slots and lengths of the step.
        self._places: tuple[Tensor, Tensor] | None = None
        #: Its rows that are not idle, and attention over their pages.
        self._active: tuple[Tensor, PagedAttention] | None = None

    @property
    def attend_projected(self) -> AttendProjected | None:
        """With CUDA kernels: nothing is read back to the host, so that a graph captures it."""
        return self._attend_projected if decodes_in_kernels(self._pool, self._config) else None

    def _attend_projected(
        self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor, norms: HeadNorms | None
    ) -> Tensor:
        if layer == 0 or self._places is None:
            self._places = decode_places(self._page_table, self._positions)
        slots, lengths = self._places
        q, _, _ = append_projected(
            *(self._pool, layer, qkv, cos, sin, norms, slots), config=self._config
        )
        return decode(*(self._pool, layer, q, self._page_table, lengths), config=self._config)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [rows, heads, head_dim], k and v [rows, kv_heads, head_dim] after rotary → like q.

        In torch, which waits for the device to know which rows are idle.
        """
        if layer == 0 or self._active is None:
            self._active = self._read_tensors()
        rows, state = self._active
        out = torch.zeros_like(q)
        if len(rows):
            out[rows] = state.attend(layer, q[rows], k[rows], v[rows])
        return out

    def _read_tensors(self) -> tuple[Tensor, PagedAttention]:
        rows = (self._positions >= 0).nonzero().flatten()
        places = zip(self._positions[rows].tolist(), self._page_table[rows].tolist(), strict=True)
        spans = [
            SequenceSpan(
                start=start,
                length=1,
                context=position,
                pages=tuple(pages[: pages_for(position + 1)]),
            )
            for start, (position, pages) in enumerate(places)
        ]
        return rows, PagedAttention(self._pool, spans, config=self._config)
