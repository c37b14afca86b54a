"""Pages with something in them, for steps that are only timed."""

from __future__ import annotations

import torch

from awqkit_runtime.cache.page_format import PAGE_TOKENS
from awqkit_runtime.cache.pool import PagePool

#: Pages that are filled at once.
_FILLED_TOGETHER = 64


def fill_with_noise(pool: PagePool) -> None:
    """Every page gets the same random keys and values."""
    form = pool.format
    shape = (PAGE_TOKENS, form.num_kv_heads, form.head_dim)
    k, v = (torch.randn(shape, device=pool.device) for _ in range(2))
    slots = torch.arange(pool.num_pages * PAGE_TOKENS, device=pool.device)
    for layer in range(form.num_layers):
        for some in slots.split(_FILLED_TOGETHER * PAGE_TOKENS):
            copies = len(some) // PAGE_TOKENS
            pool.append(layer, k.repeat(copies, 1, 1), v.repeat(copies, 1, 1), some)
