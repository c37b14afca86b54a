"""Which op feeds which linears: the same four kinds of sites for every decoder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count, takewhile

from torch import Tensor

from awqkit.checkpoint import DecoderConfig
from awqkit.checkpoint.canonical import ROUTER, SHARED_EXPERT, SHARED_EXPERT_GATE, expert_prefix

ATTENTION_NORM, MLP_NORM = "input_layernorm", "post_attention_layernorm"


@dataclass(frozen=True, kw_only=True)
class Input:
    """What some linears read. name: the one under which the decoder shows it."""

    name: str
    linears: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Site:
    """Linears whose inputs share one scale, and the op before that can take it.

    kind: "qkv", "o", "gate_up" or "down".  name: the input by which the scale is chosen.
    inputs: of the linears; each expert reads the tokens that are routed to it, and no others.
    compensated: dense linears that read the same. They take the scale into their weights.
    """

    kind: str
    name: str
    inputs: tuple[Input, ...]
    feeder: str
    feeder_is_norm: bool
    compensated: tuple[str, ...] = ()

    @property
    def linears(self) -> tuple[str, ...]:
        return tuple(linear for reader in self.inputs for linear in reader.linears)


def attention_sites() -> tuple[Site, ...]:
    """norm → q, k, v and v → o."""
    qkv = tuple(f"self_attn.{part}_proj" for part in "qkv")
    return (
        _behind_norm("qkv", [Input(name="qkv", linears=qkv)], ATTENTION_NORM),
        _behind_linear("o", "o", "self_attn.o_proj", feeder="self_attn.v_proj"),
    )


def mlp_sites(tensors: Collection[str]) -> tuple[Site, ...]:
    """norm → gate, up and up → down; with experts, the one norm → all of theirs, and each's own.

    tensors: names of the block's tensors, relative to the layer.
    """
    if f"{ROUTER}.weight" not in tensors:
        return (
            _behind_norm("gate_up", [_gate_up("mlp", "")], MLP_NORM),
            _behind_linear("down", "down", "mlp.down_proj", feeder="mlp.up_proj"),
        )
    modules = list(
        takewhile(lambda m: f"{m}.up_proj.weight" in tensors, map(expert_prefix, count()))
    )
    compensated = [ROUTER]
    if f"{SHARED_EXPERT_GATE}.weight" in tensors:
        modules.append(SHARED_EXPERT)
        compensated.append(SHARED_EXPERT_GATE)
    inputs = [_gate_up(module, f"{module}.") for module in modules]
    downs = (
        _behind_linear("down", f"{module}.down", f"{module}.down_proj", feeder=f"{module}.up_proj")
        for module in modules
    )
    return (_behind_norm("gate_up", inputs, MLP_NORM, compensated), *downs)


def tie_channels(site: Site, config: DecoderConfig, statistic: Tensor) -> Tensor:
    """Make the query heads that share a value head agree: the input of o, [in] → [in]."""
    if site.kind != "o" or config.queries_per_kv == 1:
        return statistic
    heads = statistic.view(config.num_kv_heads, config.queries_per_kv, config.head_dim)
    return heads.mean(1, keepdim=True).expand_as(heads).flatten()


def feeder_scale(site: Site, config: DecoderConfig, scale: Tensor) -> Tensor:
    """The scale of a site's input channels as the feeder's output channels see it."""
    if site.kind != "o":
        return scale
    heads = scale.view(config.num_kv_heads, config.queries_per_kv, config.head_dim)
    return heads[:, 0].flatten()


def _gate_up(module: str, prefix: str) -> Input:
    return Input(name=f"{prefix}gate_up", linears=(f"{module}.gate_proj", f"{module}.up_proj"))


def _behind_norm(
    kind: str, inputs: Sequence[Input], norm: str, compensated: Sequence[str] = ()
) -> Site:
    return Site(
        kind=kind,
        name=kind,
        inputs=tuple(inputs),
        feeder=norm,
        feeder_is_norm=True,
        compensated=tuple(compensated),
    )


def _behind_linear(kind: str, name: str, linear: str, *, feeder: str) -> Site:
    inputs = (Input(name=name, linears=(linear,)),)
    return Site(kind=kind, name=name, inputs=inputs, feeder=feeder, feeder_is_norm=False)
