"""Which op feeds which linears, the same four sites for every decoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from awqkit.checkpoint import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class Site:
    """Linears that read one input, and the op before that can take its scale."""

    name: str
    linears: tuple[str, ...]
    feeder: str
    feeder_is_norm: bool


SITES = (
    Site(
        name="qkv",
        linears=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        feeder="input_layernorm",
        feeder_is_norm=True,
    ),
    Site(
        name="o",
        linears=("self_attn.o_proj",),
        feeder="self_attn.v_proj",
        feeder_is_norm=False,
    ),
    Site(
        name="gate_up",
        linears=("mlp.gate_proj", "mlp.up_proj"),
        feeder="post_attention_layernorm",
        feeder_is_norm=True,
    ),
    Site(
        name="down",
        linears=("mlp.down_proj",),
        feeder="mlp.up_proj",
        feeder_is_norm=False,
    ),
)


def tie_channels(site: Site, config: DecoderConfig, statistic: Tensor) -> Tensor:
    """Make the query heads that share a value head agree: the input of o, [in] → [in]."""
    if site.name != "o" or config.queries_per_kv == 1:
        return statistic
    heads = statistic.view(config.num_kv_heads, config.queries_per_kv, config.head_dim)
    return heads.mean(1, keepdim=True).expand_as(heads).flatten()


def feeder_scale(site: Site, config: DecoderConfig, scale: Tensor) -> Tensor:
    """The scale of a site's input channels as the feeder's output channels see it."""
    if site.name != "o":
        return scale
    heads = scale.view(config.num_kv_heads, config.queries_per_kv, config.head_dim)
    return heads[:, 0].flatten()


ATTENTION_SITES, MLP_SITES = SITES[:2], SITES[2:]
