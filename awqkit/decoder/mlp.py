"""The feed-forward layer of a block: one gated MLP, or experts behind a router."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig, ExpertsConfig
from awqkit.checkpoint.canonical import ROUTER, SHARED_EXPERT, SHARED_EXPERT_GATE, expert_prefix
from awqkit.decoder.activation import activate
from awqkit.decoder.experts import mix_experts
from awqkit.decoder.linear import Observer, Weights, ignore, linear


def mlp(
    block: Weights,
    config: DecoderConfig,
    layer: int,
    h: Tensor,
    *,
    observe: Observer,
    show_all: Collection[int] = (),
) -> Tensor:
    """The norm's output h [batch, T, hidden] → [batch, T, hidden].

    show_all: experts whose sites are shown every token, and not just those that are routed there.
    """
    experts = config.experts_of(layer)
    observe("gate_up", h)
    if experts is None:
        return _gated(block, config, "mlp", h, observe, prefix="")
    tokens = h.flatten(0, -2)
    return _sparse(block, config, experts, tokens, observe, show_all).view_as(h)


def _sparse(
    block: Weights,
    config: DecoderConfig,
    experts: ExpertsConfig,
    h: Tensor,
    observe: Observer,
    show_all: Collection[int],
) -> Tensor:
    """[tokens, hidden] → [tokens, hidden]."""

    def run(name: str, x: Tensor, watch: Observer) -> Tensor:
        watch(f"{name}.gate_up", x)
        return _gated(block, config, name, x, watch, prefix=f"{name}.")

    def expert(number: int, x: Tensor) -> Tensor:
        return run(expert_prefix(number), x, ignore if number in show_all else observe)

    out = mix_experts(h, linear(block, ROUTER, h), experts, expert)
    for number in show_all:
        run(expert_prefix(number), h, observe)
    if experts.shared_intermediate_size is None:
        return out
    share = torch.sigmoid(linear(block, SHARED_EXPERT_GATE, h))
    return out + share * run(SHARED_EXPERT, h, observe)


def _gated(
    block: Weights, config: DecoderConfig, name: str, x: Tensor, observe: Observer, *, prefix: str
) -> Tensor:
    """down(activation(gate(x)) · up(x)) of the module `name`."""
    gate, up = (linear(block, f"{name}.{part}_proj", x) for part in ("gate", "up"))
    h = activate(gate, config.activation) * up
    observe(f"{prefix}down", h)
    return linear(block, f"{name}.down_proj", h)
