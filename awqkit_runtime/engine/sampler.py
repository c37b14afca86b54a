"""From logits to tokens, for many requests at once.

Order, for each row: repetition penalty, presence and frequency penalty, logit bias, stop tokens
ruled out below min_tokens, tokens that the grammar forbids; then greedy rows take the likeliest
token, and the others go through temperature, top-k, top-p (over what top-k left), min-p and a draw.

A draw depends on the request's seed and the position in its answer alone, never on other rows or
on earlier draws, so an answer is the same alone, in any batch, and after being computed again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from awqkit_runtime.engine.request import Request, TokenLogprobs


@dataclass(frozen=True, kw_only=True)
class SampledToken:
    token_id: int
    logprobs: TokenLogprobs | None


def needs_known_tokens(request: Request) -> bool:
    """Whether its next token cannot be chosen before all tokens in front of it are known."""
    params = request.params
    return (
        params.repetition_penalty != 1
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
        or request.constraint is not None
    )


def sample(
    logits: Tensor, requests: Sequence[Request], lengths: Sequence[int] | None = None
) -> list[SampledToken]:
    """The next token of each request. logits: float32 [requests, vocab], not modified.

    lengths: tokens that each answer has, one in flight included; None where none is.
    """
    if lengths is None:
        lengths = _known_lengths(requests)
    adjusted = adjust_logits(logits, requests, lengths)
    tokens = adjusted.argmax(dim=-1)
    drawing = [row for row, request in enumerate(requests) if not request.params.greedy]
    if drawing:
        drawn = draw(
            adjusted[drawing],
            [requests[row] for row in drawing],
            [lengths[row] for row in drawing],
        )
        tokens[drawing] = drawn
    ids = tokens.tolist()
    logprobs = _logprobs(logits, ids, requests)
    return [
        SampledToken(token_id=token, logprobs=found)
        for token, found in zip(ids, logprobs, strict=True)
    ]


def adjust_logits(
    logits: Tensor, requests: Sequence[Request], lengths: Sequence[int] | None = None
) -> Tensor:
    """Logits after penalties, bias and min_tokens; a copy where there is anything to do."""
    lengths = _known_lengths(requests) if lengths is None else lengths
    touched = [
        row for row, request in enumerate(requests) if _needs_adjusting(request, lengths[row])
    ]
    if not touched:
        return logits
    logits = logits.clone()
    for row in touched:
        _penalize(logits[row], requests[row])
        _bias(logits[row], requests[row], lengths[row])
        _constrain(logits[row], requests[row])
    return logits


def _known_lengths(requests: Sequence[Request]) -> list[int]:
    return [len(request.output_token_ids) for request in requests]


def draw(logits: Tensor, requests: Sequence[Request], lengths: Sequence[int]) -> Tensor:
    """One token per row [rows], by inverting the cumulative distribution in vocabulary order.

    Vocabulary order, unlike order of probability, does not change when two logits change places
    by a rounding error. A row without any possible token is drawn from uniformly.
    """
    best = logits.amax(dim=-1, keepdim=True)
    logits = torch.where(torch.isneginf(best), torch.zeros_like(logits), logits - best)
    scaled = logits / _column(logits, [request.params.temperature for request in requests])
    weights = scaled.exp().masked_fill_(scaled < _cutoffs(scaled, requests), 0.0)
    cumulative = weights.double().cumsum(dim=-1)
    total = cumulative[:, -1:]
    uniform = [uniform_number(r.seed, at) for r, at in zip(requests, lengths, strict=True)]
    threshold = _column(total, uniform) * total
    below_total = torch.nextafter(total, torch.zeros_like(total))
    return torch.searchsorted(
        cumulative, torch.minimum(threshold, below_total), right=True
    ).squeeze(-1)


def uniform_number(seed: int, position: int) -> float:
    """A number in [0, 1) for this seed and position (Philox: Salmon et al., SC 2011)."""
    bits = numpy.random.Philox(key=seed % 2**64, counter=position).random_raw()
    return (int(bits) >> 11) * 2.0**-53


def _needs_adjusting(request: Request, length: int) -> bool:
    params = request.params
    return needs_known_tokens(request) or bool(params.logit_bias) or length < params.min_tokens


def _penalize(row: Tensor, request: Request) -> None:
    params = request.params
    if params.repetition_penalty != 1:
        seen = sorted({*request.prompt_token_ids, *request.output_token_ids})
        index = torch.tensor(seen, device=row.device)
        values = row[index]
        factor = params.repetition_penalty
        most = torch.finfo(row.dtype).max  # which a tiny factor would exceed
        penalized = torch.where(values > 0, values / factor, values * factor)
        row[index] = penalized.clamp(max=most)
    counts = Counter(request.output_token_ids)
    if counts and (params.presence_penalty or params.frequency_penalty):
        index = torch.tensor(list(counts), device=row.device)
        times = torch.tensor(list(counts.values()), device=row.device)
        row[index] -= params.presence_penalty + params.frequency_penalty * times


def _bias(row: Tensor, request: Request, length: int) -> None:
    for token, bias in request.params.logit_bias.items():
        row[token] += bias
    if length < request.params.min_tokens:
        row[sorted(request.stop_token_ids)] = -math.inf


def _constrain(row: Tensor, request: Request) -> None:
    """Last, so that nothing makes a forbidden token possible again."""
    if request.constraint is not None:
        row.masked_fill_(request.constraint.forbidden().to(row.device), -math.inf)


def _cutoffs(scaled: Tensor, requests: Sequence[Request]) -> Tensor:
    """The lowest scaled logit that each row keeps, [rows, 1]; the best one of a row is 0.

    One number does for all three filters. Tokens that tie with the last one kept are kept too.
    """
    lowest = [math.log(r.params.min_p) if r.params.min_p > 0 else -math.inf for r in requests]
    cutoffs = _column(scaled, lowest)
    vocab = scaled.shape[-1]
    top_k = [min(r.params.top_k, vocab) if r.params.top_k > 0 else vocab for r in requests]
    filtered = [row for row, r in enumerate(requests) if top_k[row] < vocab or r.params.top_p < 1]
    if filtered:
        ranked = scaled[filtered].topk(max(top_k[row] for row in filtered), dim=-1).values
        top_p = [requests[row].params.top_p for row in filtered]
        # A sum of rounded shares can pass 1 before the last one.
        limits = _column(ranked, [share if share < 1 else math.inf for share in top_p])
        ranks = torch.arange(ranked.shape[-1], device=ranked.device)
        outside = ranks >= _column(ranks, [top_k[row] for row in filtered])
        shares = ranked.masked_fill(outside, -math.inf).softmax(dim=-1)
        outside |= shares.cumsum(dim=-1) - shares >= limits
        outside[:, 0] = False  # the best one stays, also where top_p rounds to 0
        last = ranked.masked_fill(outside, math.inf).amin(dim=-1, keepdim=True)
        cutoffs[filtered] = torch.maximum(cutoffs[filtered], last)
    return cutoffs


def _column(like: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(-1)


def _logprobs(
    logits: Tensor, tokens: Sequence[int], requests: Sequence[Request]
) -> list[TokenLogprobs | None]:
    """Of the model's own distribution: before temperature, penalties and filters."""
    found: list[TokenLogprobs | None] = [None] * len(tokens)
    for row, request in enumerate(requests):
        wanted = request.params.logprobs
        if wanted is None:
            continue
        logprobs = logits[row].log_softmax(dim=-1)
        values, ids = logprobs.topk(min(wanted, len(logprobs)))
        entry = dict(zip(ids.tolist(), values.tolist(), strict=True))
        entry.setdefault(tokens[row], float(logprobs[tokens[row]]))
        found[row] = entry
    return found
