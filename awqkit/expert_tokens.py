"""Which experts saw too few calibration tokens to be quantized by what they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig, ExpertsConfig
from awqkit.checkpoint.canonical import ROUTER
from awqkit.decoder import chosen_experts
from awqkit.ranks.ranks import Ranks
from awqkit.search.sites import MLP_NORM

#: The tensors that decide where tokens go.
ROUTING = (f"{MLP_NORM}.weight", f"{ROUTER}.weight")
#: With fewer tokens than this, moments say more about the tokens than about the expert.
MIN_EXPERT_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class StarvedExpert:
    """An expert that was quantized for the tokens of all experts, for want of its own.

    tokens: those that were routed to it, in all calibration rows.
    """

    expert: int
    tokens: int


def starved_experts(
    block: Mapping[str, Tensor],
    config: DecoderConfig,
    layer: int,
    parts: tuple[Tensor, ...],
    *,
    batch_size: int,
    ranks: Ranks,
) -> tuple[StarvedExpert, ...]:
    """The experts to which fewer than MIN_EXPERT_TOKENS tokens of any part are routed.

    block: in any dtype.  parts: rows [n, T, hidden] that enter the layer's MLP, those that are
    searched and those that judge, in each process its own. Empty where the layer has no experts.
    """
    experts = config.experts_of(layer)
    if experts is None:
        return ()
    dtype = parts[0].dtype
    routing = {name: tensor.to(dtype) for name, tensor in block.items() if name in ROUTING}
    counts = torch.stack(
        [_tokens_by_expert(routing, config, layer, part, experts, batch_size) for part in parts]
    )
    counts = ranks.total(counts)
    fewest, total = counts.amin(0).tolist(), counts.sum(0).tolist()
    return tuple(
        StarvedExpert(expert=expert, tokens=total[expert])
        for expert, count in enumerate(fewest)
        if count < MIN_EXPERT_TOKENS
    )


def _tokens_by_expert(
    block: Mapping[str, Tensor],
    config: DecoderConfig,
    layer: int,
    part: Tensor,
    experts: ExpertsConfig,
    batch_size: int,
) -> Tensor:
    """int64 [experts]."""
    device = block[f"{ROUTER}.weight"].device
    count = torch.zeros(experts.num_experts, dtype=torch.long, device=device)
    for rows in part.split(batch_size) if len(part) else ():
        chosen = chosen_experts(block, config, layer, rows.to(device)).flatten()
        count += torch.bincount(chosen, minlength=experts.num_experts)
    return count
