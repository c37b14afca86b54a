"""From adjusted logits to tokens, on the device of the logits and without waiting for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from awqkit_runtime.engine.sampling_inputs import RankFilter, SamplingInputs
from awqkit_runtime.kernels.cuda.availability import cuda_kernels_usable
from awqkit_runtime.kernels.top_p import top_p_cutoffs

#: Logits that are put in order at once, which takes many times their memory.
_ORDERED_TOGETHER = 2**22


def sample_on_device(logits: Tensor, inputs: SamplingInputs | None) -> Tensor:
    """Token ids, int64 [rows]. logits: float32 [rows, vocab], not modified. inputs: None: greedy.

    Enqueues work on the current stream and never waits for it.
    """
    if inputs is None:
        return logits.argmax(dim=-1)
    if inputs.rows is None:
        return _draw(logits, inputs)
    tokens = logits.argmax(dim=-1)
    return tokens.index_copy_(0, inputs.rows, _draw(logits.index_select(0, inputs.rows), inputs))


def _draw(logits: Tensor, inputs: SamplingInputs) -> Tensor:
    """One token per row [rows], by inverting the cumulative distribution in vocabulary order.

    Vocabulary order, unlike order of probability, does not change when two logits change places
    by a rounding error. A row without any possible token is drawn from uniformly.
    """
    best = logits.amax(dim=-1, keepdim=True)
    scaled = torch.where(torch.isneginf(best), 0.0, logits - best).div_(inputs.temperature)
    weights = scaled.exp().masked_fill_(scaled < _cutoffs(scaled, inputs), 0.0)
    del scaled
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    threshold = torch.minimum(inputs.uniform * total, below_total)
    tokens = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    # Behind the last one lies what numbers that are not finite give; the next step, which may be
    # launched before anybody knows, looks it up in the embedding.
    return tokens.clamp_(max=logits.shape[-1] - 1)


def _cutoffs(scaled: Tensor, inputs: SamplingInputs) -> Tensor:
    """The lowest scaled logit that each row keeps, [rows, 1]; the best one of a row is 0.

    One number does for all three filters. Tokens that tie with the last one kept are kept too.
    """
    cutoffs = inputs.lowest
    for ranks in inputs.filters:
        last = torch.full_like(cutoffs, -math.inf)
        last.index_copy_(0, ranks.rows, _last_kept(scaled, ranks))
        cutoffs = torch.maximum(cutoffs, last)
    return cutoffs


def _last_kept(scaled: Tensor, ranks: RankFilter) -> Tensor:
    """The least likely token that top-k, and top-p over what it left, keep: [filtered, 1]."""
    if ranks.width == scaled.shape[-1] and scaled.is_cuda and cuda_kernels_usable(scaled.device):
        return top_p_cutoffs(scaled, ranks.rows, ranks.top_p)
    together = max(1, _ORDERED_TOGETHER // ranks.width)
    parts = (rows.split(together) for rows in (ranks.rows, ranks.top_k, ranks.top_p))
    return torch.cat(
        [
            _last_of(_in_order(scaled.index_select(0, rows), ranks.width), top_k, top_p)
            for rows, top_k, top_p in zip(*parts, strict=True)
        ]
    )


def _in_order(scaled: Tensor, width: int) -> Tensor:
    """The likeliest `width` of each row, likeliest first."""
    if width == scaled.shape[-1]:
        return scaled.sort(dim=-1, descending=True).values
    return scaled.topk(width, dim=-1).values


def _last_of(ranked: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """ranked: [rows, width]; top_k, top_p: [rows, 1]."""
    outside = torch.arange(ranked.shape[-1], device=ranked.device) >= top_k
    weights = ranked.double().exp_().masked_fill_(outside, 0.0)
    reached = weights.cumsum(dim=-1)
    limit = top_p * reached[:, -1:]
    outside |= reached.sub_(weights) >= limit
    outside[:, 0] = False  # The best one stays, also where top_p rounds to 0.
    return ranked.masked_fill_(outside, math.inf).amin(dim=-1, keepdim=True)
