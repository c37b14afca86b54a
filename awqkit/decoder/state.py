"""The decoder's own plain key-value cache, for sampling from a model without a runtime."""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValues:
    """Keys and values of one layer for a batch of sequences that advance in step."""

    def __init__(self, batch: int, length: int, kv_heads: int, head_dim: int, like: Tensor) -> None:
        shape = (batch, kv_heads, length, head_dim)
        # Numbers also where nothing was stored: sampling is timed in the middle of an empty cache.
        self._keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self._values = torch.zeros_like(self._keys)
        self.length = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [batch, kv_heads, T, head_dim]; return everything stored so far."""
        end = self.length + keys.shape[2]
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]
