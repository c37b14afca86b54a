"""Attention of one new token in every row over paged keys and values, all of it read from tensors.

Which pages a row has and where its token stands are numbers in tensors, so a CUDA graph that was
captured around a step computes other steps when these change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit_runtime.cache.page_format import pages_for
from awqkit_runtime.cache.page_kernels import (
    append_projected,
    decode,
    decodes_in_kernels,
    rows_by_window,
)
from awqkit_runtime.cache.paged_attention import PagedAttention, SequenceSpan
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.kernels.decode_places import decode_places
from awqkit_runtime.kernels.paged_decode import DecodeRows
from awqkit_runtime.kernels.rotary import AttendProjected, HeadNorms


class DecodeAttention:
    """AttentionState of one step of decodes alone.

    page_table: int32 [rows, width], the pages of each row's sequence in order; entries
    behind those that its tokens need may hold anything. positions: int64 [rows], of each row's new
    token, which sees itself and all before it; below 0: the row is idle, nothing is stored and its
    output is zeros. Both on the pool's device. No two rows may stand at one place of one page.

    steady: rows may be of one sequence, and none depends on the others (kernels.share_rows). Only
    where kernels decode.
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
        self._page_table = page_table
        self._positions = positions
        self._config = config
        #: Slots and rows of the step, for kernels. They are computed before any layer: attention
        #: reads rows before the kernel in front of it has ended, so these must be there earlier.
        self._places: tuple[Tensor, dict[int | None, DecodeRows]] | None = None
        if decodes_in_kernels(pool, config):
            slots, lengths = decode_places(page_table, positions)
            rows = rows_by_window(pool, page_table, lengths, config=config, steady=steady)
            self._places = slots, rows
        #: Its rows that are not idle, and attention over their pages.
        self._active: tuple[Tensor, PagedAttention] | None = None

    @property
    def attend_projected(self) -> AttendProjected | None:
        """With CUDA kernels: nothing is read back to the host, so that a graph captures it."""
        return None if self._places is None else self._attend_projected

    def _attend_projected(
        self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor, norms: HeadNorms | None
    ) -> Tensor:
        assert self._places is not None
        slots, rows = self._places
        q, _, _ = append_projected(
            *(self._pool, layer, qkv, cos, sin, norms, slots), config=self._config
        )
        return decode(*(self._pool, layer, q, rows), config=self._config)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [rows, heads, head_dim], k and v [rows, kv_heads, head_dim] after rotary → like q.

        In torch, which waits for the device to know which rows are idle.
        """
        if self._active is None:
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
