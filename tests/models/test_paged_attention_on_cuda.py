"""Whole models over pages on a GPU: through the kernels as through torch's operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.cache.paged_attention import PagedAttention, SequenceSpan
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.layers.placement import Fusions
from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.models.loader import load_decoder
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.gpu
#: Chunks of a prompt, and tokens that follow.
CHUNKS = (70, 1, 64, 15, 1, 1)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 50},
    "qwen3": {},
    "gemma2": {},
    "gemma3": {},
}


def paged_logits(decoder: Decoder, ids: Tensor, quant_policy: int | str) -> Tensor:
    """Of all tokens, [tokens, vocab], computed chunk by chunk."""
    page_format = PageFormat.for_policy(decoder.config, quant_policy, decoder.dtype)
    pages = tuple(reversed(range(pages_for(len(ids)))))
    pool = PagePool(page_format, len(pages), decoder.device)
    parts, done = [], 0
    for new in ids.split(CHUNKS):
        span = SequenceSpan(start=0, length=len(new), context=done, pages=pages)
        state = PagedAttention(pool, [span], config=decoder.config)
        positions = torch.arange(done, done + len(new), device=decoder.device)
        parts.append(decoder.logits(decoder.hidden(new, positions, state)))
        done += len(new)
    return torch.cat(parts)


@pytest.mark.parametrize("quant_policy", [0, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_change_nothing_but_roundings(
    family: str, quant_policy: int | str, tmp_path: Path
) -> None:
    shape = {"head_dim": 64, **FAMILIES[family]}
    folder = write_tiny_model(tmp_path, family, dtype=torch.bfloat16, **shape)
    ids = torch.randint(3, 320, (sum(CHUNKS),), generator=torch.Generator().manual_seed(1)).cuda()
    in_kernels, in_torch = (
        paged_logits(
            load_decoder(folder, device="cuda", dtype="bfloat16", fusions=fusions),
            ids,
            quant_policy,
        )
        for fusions in (Fusions(), Fusions(rotary=False))
    )
    assert (in_kernels - in_torch).norm() <= 0.03 * in_torch.norm()
    assert not torch.equal(in_kernels, in_torch)  # They are two ways indeed.
