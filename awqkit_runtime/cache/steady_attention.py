"""Attention token by token over paged keys and values: no result depends on the company it keeps.

PagedAttention pads sequences to common lengths and multiplies many queries at once, and sums of
floats depend on such shapes in their last bits. Here each query is multiplied by itself with the
keys that it sees, so that the shapes follow from its position alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit_runtime.cache.page_format import PAGE_TOKENS
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.kernels.attention import AttentionBlock, attend


@dataclass(frozen=True, kw_only=True)
class TokenPlace:
    """One new token: its row in the step's batch, its position, the pages of its sequence."""

    row: int
    position: int
    pages: tuple[int, ...]

    def slots(self, start: int) -> list[int]:
        """Slots of the tokens at positions from start to its own."""
        return [
            self.pages[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
            for position in range(start, self.position + 1)
        ]


class SteadyAttention:
    """AttentionState of one step. Rows that no token has are neither stored nor attended."""

    attend_projected = None

    def __init__(
        self, pool: PagePool, places: Sequence[TokenPlace], *, config: DecoderConfig
    ) -> None:
        self._pool = pool
        self._config = config
        self._rows = torch.tensor([place.row for place in places], device=pool.device)
        slots = [place.slots(place.position)[0] for place in places]
        self._slots = torch.tensor(slots, device=pool.device)
        windows = {config.window(layer) for layer in range(config.num_layers)}
        self._keys = {
            window: [self._key_slots(place, window) for place in places] for window in windows
        }
        self._places = tuple(places)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, heads, head_dim], k and v [T, kv_heads, head_dim] after rotary → like q."""
        self._pool.append(layer, k[self._rows], v[self._rows], self._slots)
        q = self._pool.queries(layer, q)
        out = torch.zeros_like(q)
        keys = self._keys[self._config.window(layer)]
        for place, slots in zip(self._places, keys, strict=True):
            out[place.row] = self._attend_one(layer, q[place.row], slots)
        return out

    def _attend_one(self, layer: int, q: Tensor, slots: Tensor) -> Tensor:
        """q [heads, head_dim] → the same."""
        k, v = self._pool.gather(layer, slots)
        block = AttentionBlock(queries=slice(0, 1), keys=slice(0, len(slots)), visible=None)
        return attend(
            q[None, None],
            k[None],
            v[None],
            [block],
            scale=self._config.softmax_scale,
            softcap=self._config.attention_softcap,
        )[0, 0]

    def _key_slots(self, place: TokenPlace, window: int | None) -> Tensor:
        first = 0 if window is None else max(0, place.position - window + 1)
        return torch.tensor(place.slots(first), device=self._pool.device)
