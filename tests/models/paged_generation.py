"""Greedy decoding of one sequence through pages, for tests of models without the engine."""

from __future__ import annotations

import torch

from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.cache.paged_attention import PagedAttention, SequenceSpan
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.models.decoder import Decoder


def generate_greedily(
    decoder: Decoder, prompt: list[int], count: int, *, quant_policy: int | str, chunk: int = 512
) -> list[int]:
    """prompt and count further token ids; the prompt is prefilled in chunks."""
    pages = tuple(reversed(range(pages_for(len(prompt) + count))))
    format = PageFormat.for_policy(decoder.config, quant_policy, decoder.dtype)
    pool = PagePool(format, len(pages), decoder.device)
    ids, done = list(prompt), 0
    while len(ids) < len(prompt) + count:
        new = ids[done : done + chunk]
        span = SequenceSpan(start=0, length=len(new), context=done, pages=pages)
        state = PagedAttention(pool, [span], config=decoder.config)
        positions = torch.arange(done, done + len(new), device=decoder.device)
        hidden = decoder.hidden(torch.tensor(new, device=decoder.device), positions, state)
        done += len(new)
        if done == len(ids):
            ids.append(int(decoder.logits(hidden[-1:]).argmax()))
    return ids
