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
from awqkit_runtime.cache.key_pieces import KeyPieces, KeyRun, plan_pieces
from awqkit_runtime.cache.page_format import PAGE_TOKENS
from awqkit_runtime.cache.page_rows import TokenRows
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.kernels.attention import attend_singly

#: Keys that are read at once, unless a single token sees more.
JOINT_KEYS = 4096


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
    """Tokens whose keys are read at once, the same in all layers of one window."""

    places: slice
    pieces: KeyPieces
    #: Those that are read, on the device.
    read: TokenRows


class SteadyAttention:
    """AttentionState of one step. Rows that no token has are neither stored nor attended."""

    attend_projected = None

    def __init__(
        self, pool: PagePool, places: Sequence[TokenPlace], *, config: DecoderConfig
    ) -> None:
        self._pool = pool
        self._config = config
        self._rows = [place.row for place in places]
        numbers = torch.tensor([self._rows, [place.slot for place in places]])
        self._row_numbers, slots = send(numbers, pool.device).unbind()
        self._new = pool.rows(slots)
        self._groups: dict[int | None, list[_Group]] = {}
        for window in {config.window(layer) for layer in range(config.num_layers)}:
            runs = [place.keys(window) for place in places]
            self._groups[window] = [self._group(runs, part) for part in _joint_reads(runs)]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, heads, head_dim], k and v [T, kv_heads, head_dim] after rotary → like q."""
        k, v = k.index_select(0, self._row_numbers), v.index_select(0, self._row_numbers)
        self._pool.append_rows(layer, k, v, self._new)
        q = self._pool.queries(layer, q)
        groups = self._groups[self._config.window(layer)]
        found = [self._attend_group(layer, q, group) for group in groups]
        attended = found[0] if len(found) == 1 else torch.cat(found)
        return torch.zeros_like(q).index_copy_(0, self._row_numbers, attended)

    def _attend_group(self, layer: int, q: Tensor, group: _Group) -> Tensor:
        """[tokens, heads, head_dim] of the group's."""
        keys, values = self._pool.read_rows(layer, group.read).to(q.dtype).unbind()
        return attend_singly(
            q,
            self._rows[group.places],
            group.pieces.split(keys),
            group.pieces.split(values),
            scale=self._config.softmax_scale,
            softcap=self._config.attention_softcap,
        )

    def _group(self, runs: Sequence[KeyRun], places: slice) -> _Group:
        pieces = plan_pieces(runs[places], self._pool.format)
        rows = send(torch.from_numpy(pieces.rows), self._pool.device)
        return _Group(places=places, pieces=pieces, read=self._pool.piece_rows(rows))


def _joint_reads(runs: Sequence[KeyRun]) -> list[slice]:
    """Runs, in order, of no more than JOINT_KEYS keys together, or one that has more by itself."""
    found, start, keys = [], 0, 0
    for place, run in enumerate(runs):
        if place > start and keys + run.keys > JOINT_KEYS:
            found.append(slice(start, place))
            start, keys = place, 0
        keys += run.keys
    return [*found, slice(start, len(runs))]
