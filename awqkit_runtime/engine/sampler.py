"""From logits to tokens, for many requests at once.

Order, for each row: repetition penalty, presence and frequency penalty, logit bias; then what the
grammar forbids is ruled out, and below min_tokens stop tokens, where any other is left. At last
greedy rows take the likeliest token, and the others go through temperature, top-k, top-p (over
what top-k left), min-p and a draw.

A draw depends on the request's seed and the position in its answer alone, never on other rows or
on earlier draws, so an answer is the same alone, in any batch, and after being computed again.

On a GPU nothing here waits for the device, unless penalties, a bias or a grammar are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from awqkit_runtime.engine.logit_adjustments import (
    adjust_logits,
    known_positions,
    needs_known_tokens,
)
from awqkit_runtime.engine.logprobs import PendingLogprobs, launch_logprobs
from awqkit_runtime.engine.request import Request, TokenLogprobs
from awqkit_runtime.engine.sampling_inputs import sampling_inputs
from awqkit_runtime.engine.token_choice import sample_on_device

__all__ = [
    "ChosenTokens",
    "SampledToken",
    "choose_tokens",
    "collect_tokens",
    "needs_known_tokens",
    "sample",
    "sample_on_device",
]


@dataclass(frozen=True, kw_only=True)
class SampledToken:
    token_id: int
    logprobs: TokenLogprobs | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ChosenTokens:
    """What a step samples, on the device still."""

    #: int64 [rows].
    token_ids: Tensor
    logprobs: PendingLogprobs | None


def collect_tokens(tokens: Sequence[int], logprobs: PendingLogprobs | None) -> list[SampledToken]:
    """Each row's token, known to the host by now, with what was asked for beside it."""
    if logprobs is None:
        return [SampledToken(token_id=token, logprobs=None) for token in tokens]
    return [
        SampledToken(token_id=token, logprobs=found)
        for token, found in zip(tokens, logprobs.collect(tokens), strict=True)
    ]


def choose_tokens(
    logits: Tensor, requests: Sequence[Request], positions: Sequence[int]
) -> ChosenTokens:
    """The next token of each request. logits: float32 [requests, vocab], not modified.

    positions: of these tokens in their answers.
    """
    inputs = sampling_inputs(requests, positions, logits.shape[-1], logits.device)
    token_ids = sample_on_device(adjust_logits(logits, requests, positions), inputs)
    return ChosenTokens(token_ids=token_ids, logprobs=launch_logprobs(logits, token_ids, requests))


def sample(logits: Tensor, requests: Sequence[Request]) -> list[SampledToken]:
    """As choose_tokens, on the host: waits for the device."""
    chosen = choose_tokens(logits, requests, known_positions(requests))
    return collect_tokens(chosen.token_ids.tolist(), chosen.logprobs)
