"""Attention token by token over paged keys and values: no result depends on the company it keeps.

PagedAttention pads sequences to common lengths and multiplies many queries at once, and sums of
floats depend on such shapes in their last bits. Here each query is multiplied by itself with the
keys that it sees, so that the shapes follow from its position alone. What only moves numbers, or
takes them one by one, is done for many tokens at once: reading the pages, above all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit_runtime.cache.int_arrays import send
from awqkit_runtime.cache.key_pieces import KeyPieces, KeyRun, joint_reads
from awqkit_runtime.cache.page_format import PAGE_TOKENS
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.kernels.attention import attend_singly


@dataclass(frozen=True, kw_only=True)
class TokenPlace:
    """One new token: its row in the step's batch, its position, the pages of its sequence."""

    row: int
    position: int
    pages: tuple[int, ...]

    @property
    def slot(self) -> int:
        return self.pages[self.position // PAGE_TOKENS] * PAGE_TOKENS + self.position % PAGE_TOKENS

    def keys(self, window: int | None) -> KeyRun:
        """Those that it sees."""
        first = 0 if window is None else max(0, self.position - window + 1)
        return KeyRun(pages=self.pages, first=first, stop=self.position + 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    """Tokens whose keys are read at once."""

    #: In the step's batch.
    rows: list[int]
    keys: KeyPieces


class SteadyAttention:
    """AttentionState of one step. Rows that no token has are neither stored nor attended."""

    attend_projected = None

    def __init__(
        self, pool: PagePool, places: Sequence[TokenPlace], *, rows: int, config: DecoderConfig
    ) -> None:
        """rows: of the step's batch."""
        self._pool = pool
        self._config = config
        # As many are stored as there are rows, the last one again and again: codes of 4 bits are
        # fitted by sums, whose order on a GPU depends on how many vectors there are.
        stored = [*places, *([places[-1]] * (rows - len(places)))]
        numbers = torch.tensor([[place.row for place in stored], [place.slot for place in stored]])
        self._stored_rows, slots = send(numbers, pool.device).unbind()
        self._rows = self._stored_rows[: len(places)]
        self._stored = pool.rows(slots)
        self._groups = {
            window: _groups(pool, places, window)
            for window in {config.window(layer) for layer in range(config.num_layers)}
        }

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, heads, head_dim], k and v [T, kv_heads, head_dim] after rotary → like q."""
        k, v = k.index_select(0, self._stored_rows), v.index_select(0, self._stored_rows)
        self._pool.append_rows(layer, k, v, self._stored)
        q = self._pool.queries(layer, q)
        groups = self._groups[self._config.window(layer)]
        found = [self._attend_group(layer, q, group) for group in groups]
        attended = found[0] if len(found) == 1 else torch.cat(found)
        return torch.zeros_like(q).index_copy_(0, self._rows, attended)

    def _attend_group(self, layer: int, q: Tensor, group: _Group) -> Tensor:
        """[tokens, heads, head_dim] of the group's."""
        keys, values = group.keys.read(layer, q.dtype)
        scale, softcap = self._config.softmax_scale, self._config.attention_softcap
        return attend_singly(q, group.rows, keys, values, scale=scale, softcap=softcap)


def _groups(pool: PagePool, places: Sequence[TokenPlace], window: int | None) -> list[_Group]:
    runs = [place.keys(window) for place in places]
    return [
        _Group(rows=[place.row for place in places[part]], keys=KeyPieces(pool, runs[part]))
        for part in joint_reads(runs)
    ]
