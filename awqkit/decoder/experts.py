"""A mixture of experts: a router sends each token through the few experts that it scores highest.

Shazeer et al., 2017, equation 3, with the softmax before the choice, as published models have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from awqkit.checkpoint import ExpertsConfig

#: Computes an expert on [tokens, hidden]: (expert, x) → [tokens, hidden].
Expert = Callable[[int, Tensor], Tensor]


def route(scores: Tensor, experts: ExpertsConfig) -> tuple[Tensor, Tensor]:
    """Each token's experts and their shares of the output, both [tokens, experts_per_token].

    scores: the router's output [tokens, experts]. The experts are int64, the shares float32.
    """
    shares = torch.softmax(scores.float(), dim=-1)
    shares, chosen = shares.topk(experts.experts_per_token, dim=-1)
    if experts.norm_topk_prob:
        shares = shares / shares.sum(-1, keepdim=True)
    return chosen, shares


def routed_tokens(chosen: Tensor, num_experts: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each expert that any token takes: its number, the tokens, and which choice it was.

    chosen: int64 [tokens, experts_per_token].
    """
    choices = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)
    # One transfer for all experts: asking for each one's tokens would wait for the device as often.
    counts = torch.bincount(chosen.flatten(), minlength=num_experts).tolist()
    for expert, part in enumerate(order.split(counts)):
        if len(part):
            yield expert, part // choices, part % choices


def mix_experts(x: Tensor, scores: Tensor, experts: ExpertsConfig, expert: Expert) -> Tensor:
    """The sum of each token's experts, weighted by their shares: [tokens, hidden] → the same.

    scores: the router's output [tokens, experts].
    """
    chosen, shares = route(scores, experts)
    shares = shares.to(x.dtype)
    mixed = torch.zeros_like(x)
    for number, tokens, choice in routed_tokens(chosen, experts.num_experts):
        part = expert(number, x[tokens]) * shares[tokens, choice].unsqueeze(-1)
        mixed.index_add_(0, tokens, part)
    return mixed
