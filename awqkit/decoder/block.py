"""One decoder block: norm → q,k,v → attention → o, norm → gate,up → down, with residuals."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from awqkit.checkpoint import DecoderConfig, UnsupportedModelError
from awqkit.decoder.norm import rms_norm
from awqkit.decoder.rotary import apply_rotary
from awqkit.decoder.state import KeyValues

#: Called with the name of each site ("qkv", "o", "gate_up", "down") and what its linears are about
#: to read, [batch, T, in].
Observer = Callable[[str, Tensor], None]
Weights = Mapping[str, Tensor]


def require_supported(config: DecoderConfig) -> None:
    """Raise UnsupportedModelError for a feature that this decoder does not compute."""
    features = {
        "a mixture of experts": config.experts is not None,
        "soft caps": config.attention_softcap is not None or config.final_softcap is not None,
        "norms after attention and MLP": config.post_norms,
        "scaled embeddings": config.embedding_scale is not None,
        f"the activation {config.activation}": config.activation != "silu",
    }
    missing = [name for name, present in features.items() if present]
    if missing:
        raise UnsupportedModelError(
            f"The model uses {' and '.join(missing)}, which awqkit does not compute yet; "
            "use a dense model of a supported family."
        )


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
    rotary: cos and sin [T, rotary_dim] at the positions of x.
    """
    x = attention_half(block, config, layer, x, rotary, cache=cache)
    return mlp_half(block, config, x)


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
    observe = observe or _ignore
    h = _norm(block, config, "input_layernorm", x)
    observe("qkv", h)
    context = _attention(block, config, layer, h, rotary, cache)
    observe("o", context)
    return x + _linear(block, "self_attn.o_proj", context)


def mlp_half(
    block: Weights, config: DecoderConfig, x: Tensor, *, observe: Observer | None = None
) -> Tensor:
    """x + down(silu(gate(h)) · up(h)) with h = norm(x)."""
    observe = observe or _ignore
    h = _norm(block, config, "post_attention_layernorm", x)
    observe("gate_up", h)
    h = F.silu(_linear(block, "mlp.gate_proj", h)) * _linear(block, "mlp.up_proj", h)
    observe("down", h)
    return x + _linear(block, "mlp.down_proj", h)


def _ignore(site: str, value: Tensor) -> None:
    """Observe nothing."""


def _linear(block: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, block[f"{name}.weight"], block.get(f"{name}.bias"))


def _norm(block: Weights, config: DecoderConfig, name: str, x: Tensor) -> Tensor:
    return rms_norm(
        x, block[f"{name}.weight"], config.norm_eps, unit_offset=config.norm_unit_offset
    )


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
        _linear(block, f"self_attn.{name}_proj", h).unflatten(-1, (-1, config.head_dim))
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
    context = attend(q, k, v, scale=config.softmax_scale, window=config.window(layer))
    return context.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
    """Causal attention of the last T positions over all S.

    q: [batch, heads, T, head_dim]; k, v: [batch, kv_heads, S, head_dim]; returns q's shape.
    """
    queries, keys = q.shape[2], k.shape[2]
    if queries == keys and (window is None or window >= keys):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=queries > 1, scale=scale, enable_gqa=True
        )
    mask = _visible(queries, keys, window, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)


def _visible(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys each query sees: bool [T, S], or None for all of them."""
    if queries == 1 and (window is None or window >= keys):
        return None
    position = torch.arange(keys - queries, keys, device=device).unsqueeze(1)
    key = torch.arange(keys, device=device)
    mask = key <= position
    if window is not None:
        mask &= key > position - window
    return mask
