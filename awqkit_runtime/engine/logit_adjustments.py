"""What requests change of the logits before a token is chosen: penalties, bias, grammar."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from awqkit_runtime.engine.constraint import Constraint
from awqkit_runtime.engine.request import Request


def needs_known_tokens(request: Request) -> bool:
    """Whether its next token depends on the tokens before by more than what the model read."""
    params = request.params
    return (
        params.repetition_penalty != 1
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
        or request.constraint is not None
    )


def adjust_logits(
    logits: Tensor, requests: Sequence[Request], positions: Sequence[int] | None = None
) -> Tensor:
    """Logits after penalties, bias and min_tokens; a copy where there is anything to do.

    logits: float32 [requests, vocab]. positions: of the tokens to choose, in their answers; None:
    each comes right behind the tokens that its request has.
    """
    places = known_positions(requests) if positions is None else positions
    touched = [row for row, request in enumerate(requests) if _adjusts(request, places[row])]
    if not touched:
        return logits
    logits = logits.clone()
    for row in touched:
        _penalize(logits[row], requests[row])
        _bias(logits[row], requests[row])
        _rule_out(logits[row], requests[row], places[row])
    return logits


def known_positions(requests: Sequence[Request]) -> list[int]:
    """Of each request's next token, where the ones before are known."""
    return [len(request.output_token_ids) for request in requests]


def _adjusts(request: Request, position: int) -> bool:
    params = request.params
    return needs_known_tokens(request) or bool(params.logit_bias) or position < params.min_tokens


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


def _bias(row: Tensor, request: Request) -> None:
    for token, bias in request.params.logit_bias.items():
        row[token] += bias


def _rule_out(row: Tensor, request: Request, position: int) -> None:
    """Stop tokens below min_tokens, unless no other may come next, and what the grammar forbids.

    Last, so that nothing makes such a token possible again.
    """
    stops = sorted(request.stop_token_ids) if position < request.params.min_tokens else []
    if request.constraint is not None:
        forbidden = _forbidden(request.constraint, stops)
        row.masked_fill_(forbidden.to(row.device), -math.inf)
    elif stops and len(stops) < len(row):
        row[stops] = -math.inf


def _forbidden(constraint: Constraint, stops: list[int]) -> Tensor:
    """bool [vocab]. stops: to be forbidden too where that leaves any token."""
    forbidden = constraint.forbidden()
    with_stops = forbidden.clone()
    with_stops[stops] = True
    return forbidden if with_stops.all() else with_stops
