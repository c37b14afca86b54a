"""One decoder block: norm → q,k,v → attention → o, norm → gate,up → down, with residuals."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from awqkit.checkpoint import DecoderConfig
from awqkit.checkpoint.canonical import ATTENTION_OUTPUT_NORM, MLP_OUTPUT_NORM, ROUTER
from awqkit.decoder.attention import attend
from awqkit.decoder.experts import route
from awqkit.decoder.linear import Observer, Weights, ignore, linear
from awqkit.decoder.mlp import mlp
from awqkit.decoder.norm import rms_norm
from awqkit.decoder.rotary import apply_rotary
from awqkit.decoder.state import KeyValues


def block_forward(
    block: Weights,
    config: DecoderConfig,
    layer: int,
    x: Tensor,
    rotary: tuple[Tensor, Tensor],
    *,
    cache: KeyValues | None = None,
) -> Tensor:
    """Run one block on x [batch, T, hidden].

    block: weights named relative to the layer, in x's dtype and on its device.
    rotary: cos and sin [T, rotary_dim] of this layer, at the positions of x.
    """
    x = attention_half(block, config, layer, x, rotary, cache=cache)
    return mlp_half(block, config, layer, x)


def attention_half(
    block: Weights,
    config: DecoderConfig,
    layer: int,
    x: Tensor,
    rotary: tuple[Tensor, Tensor],
    *,
    cache: KeyValues | None = None,
    observe: Observer | None = None,
) -> Tensor:
    """x + o(attention(q, k, v of norm(x))); arguments as in block_forward."""
    observe = observe or ignore
    h = _norm(block, config, "input_layernorm", x)
    observe("qkv", h)
    context = _attention(block, config, layer, h, rotary, cache)
    observe("o", context)
    out = linear(block, "self_attn.o_proj", context)
    return x + _post_norm(block, config, ATTENTION_OUTPUT_NORM, out)


def mlp_half(
    block: Weights,
    config: DecoderConfig,
    layer: int,
    x: Tensor,
    *,
    observe: Observer | None = None,
    show_all: Collection[int] = (),
) -> Tensor:
    """x + mlp(norm(x)); arguments as in block_forward.

    show_all: experts whose sites are shown every token, and not just those that are routed there.
    """
    h = _norm(block, config, "post_attention_layernorm", x)
    out = mlp(block, config, layer, h, observe=observe or ignore, show_all=show_all)
    return x + _post_norm(block, config, MLP_OUTPUT_NORM, out)


def chosen_experts(block: Weights, config: DecoderConfig, layer: int, x: Tensor) -> Tensor:
    """The experts that the tokens of x [batch, T, hidden], the input of mlp_half, are routed to.

    int64 [batch · T, experts_per_token]. The layer must have experts.
    """
    experts = config.experts_of(layer)
    assert experts is not None
    h = _norm(block, config, "post_attention_layernorm", x).flatten(0, -2)
    return route(linear(block, ROUTER, h), experts)[0]


def _norm(block: Weights, config: DecoderConfig, name: str, x: Tensor) -> Tensor:
    return rms_norm(
        x, block[f"{name}.weight"], config.norm_eps, unit_offset=config.norm_unit_offset
    )


def _post_norm(block: Weights, config: DecoderConfig, name: str, x: Tensor) -> Tensor:
    return _norm(block, config, name, x) if config.post_norms else x


def _attention(
    block: Weights,
    config: DecoderConfig,
    layer: int,
    h: Tensor,
    rotary: tuple[Tensor, Tensor],
    cache: KeyValues | None,
) -> Tensor:
    """[batch, T, hidden] → the input of o_proj, [batch, T, heads · head_dim]."""
    q, k, v = (
        linear(block, f"self_attn.{name}_proj", h).unflatten(-1, (-1, config.head_dim))
        for name in "qkv"
    )
    if config.qk_norm:
        q, k = (
            _norm(block, config, f"self_attn.{name}_norm", x) for name, x in (("q", q), ("k", k))
        )
    q, k = (apply_rotary(x, *rotary) for x in (q, k))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if cache is not None:
        k, v = cache.extend(k, v)
    context = attend(
        q,
        k,
        v,
        scale=config.softmax_scale,
        window=config.window(layer),
        softcap=config.attention_softcap,
    )
    return context.transpose(1, 2).flatten(2)
