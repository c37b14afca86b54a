"""One description of a decoder that fits every supported family.

Families translate their own config.json into this; nothing behind them sees a model name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from awqkit.checkpoint.errors import CheckpointError

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
Activation = Literal["silu", "gelu_tanh"]

#: Of a whole model, far above any; a damaged count must not make lists of its length.
MAX_EXPERTS = 500_000


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding. Fields that a kind does not use keep their defaults."""

    kind: RopeKind = "default"
    theta: float = 10000.0
    factor: float = 1.0
    #: Fraction of each head that rotates.
    partial_rotary_factor: float = 1.0
    #: The context length before scaling (dynamic, llama3, yarn, longrope).
    original_max_position_embeddings: int | None = None
    #: llama3
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    #: yarn
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    #: longrope: divisors of each rotating pair's frequency, in sessions up to the context length
    #: before scaling, and in longer ones.
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            raise CheckpointError(
                f"config.json: rotary kind {self.kind!r} is not known; "
                f"known are {', '.join(ROPE_KINDS)}."
            )


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """A mixture of experts in place of the dense MLP: softmax over all, the best few are taken."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    #: The layers that have it; the others have the dense MLP.
    layers: tuple[int, ...]
    #: The chosen experts' shares are scaled to sum to 1.
    norm_topk_prob: bool = True
    #: Of an expert that every token passes, behind a sigmoid gate of its own.
    shared_intermediate_size: int | None = None

    def __post_init__(self) -> None:
        sizes = {
            "number of experts": self.num_experts,
            "number of experts for a token": self.experts_per_token,
            "intermediate size of an expert": self.intermediate_size,
            "intermediate size of the shared expert": self.shared_intermediate_size or 1,
        }
        for name, value in sizes.items():
            if value < 1:
                raise CheckpointError(f"config.json: the {name} is {value}; it must be positive.")
        if self.num_experts * len(self.layers) > MAX_EXPERTS:
            raise CheckpointError(
                f"config.json: {self.num_experts} experts in {len(self.layers)} layers; no model "
                "has that many. Fetch the file again."
            )
        if self.experts_per_token > self.num_experts:
            raise CheckpointError(
                f"config.json: a token takes {self.experts_per_token} experts of "
                f"{self.num_experts}; there must be that many."
            )


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder-only transformer, in Llama's terms. Sizes are counts of elements."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_eps: float
    rope: RopeConfig = field(default_factory=RopeConfig)
    #: Of the layers with a window, where theirs is another one.
    window_rope: RopeConfig | None = None
    activation: Activation = "silu"
    tie_word_embeddings: bool = False
    #: The dtype in which config.json says the weights are stored: "bfloat16", "float16", "float32".
    dtype: str = "bfloat16"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    #: RMSNorm over head_dim of q and k, before rotary.
    qk_norm: bool = False
    #: Per layer the number of keys a query may see (itself included); None: all of them.
    #: Empty means None everywhere.
    windows: tuple[int | None, ...] = ()

    #: Factor on q·k; None means head_dim ** -0.5.
    attention_scale: float | None = None
    #: Scores and logits x become cap · tanh(x / cap).
    attention_softcap: float | None = None
    final_softcap: float | None = None
    #: Factor on the token embeddings, rounded to the dtype that they are used in.
    embedding_scale: float | None = None
    #: Norms multiply by 1 + weight.
    norm_unit_offset: bool = False
    #: Further norms on the outputs of attention and MLP, before the residual add.
    post_norms: bool = False
    experts: ExpertsConfig | None = None

    def __post_init__(self) -> None:
        sizes = {
            name: getattr(self, name)
            for name in (
                "hidden_size",
                "num_layers",
                "num_heads",
                "num_kv_heads",
                "head_dim",
                "intermediate_size",
                "vocab_size",
                "max_position_embeddings",
            )
        }
        for name, value in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(
                    f"config.json: {name} is {value!r}; it must be a positive whole number."
                )
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"config.json: {self.num_heads} attention heads cannot share "
                f"{self.num_kv_heads} key-value heads evenly."
            )
        if self.head_dim % 2:
            raise CheckpointError(
                f"config.json: head_dim is {self.head_dim}; rotary embedding needs an even one."
            )
        caps = (self.attention_softcap, self.final_softcap)
        if any(cap is not None and cap <= 0 for cap in caps):
            raise CheckpointError(f"config.json: the soft caps are {caps}; they must be positive.")
        for rope in (self.rope, self.window_rope or self.rope):
            self._require_divisors(rope)
        if self.windows and len(self.windows) != self.num_layers:
            raise CheckpointError(
                f"config.json: {len(self.windows)} attention windows for {self.num_layers} layers."
            )

    def _require_divisors(self, rope: RopeConfig) -> None:
        pairs = int(self.head_dim * rope.partial_rotary_factor) // 2
        counts = {len(rope.short_factors), len(rope.long_factors)}
        if rope.kind == "longrope" and counts != {pairs}:
            raise CheckpointError(
                f"config.json: the rotary embedding has {len(rope.short_factors)} short and "
                f"{len(rope.long_factors)} long factors for {pairs} rotating pairs of a head. "
                "Fetch the file again."
            )

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def queries_per_kv(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def softmax_scale(self) -> float:
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None

    def rope_of(self, layer: int) -> RopeConfig:
        if self.window_rope is None or self.window(layer) is None:
            return self.rope
        return self.window_rope

    def experts_of(self, layer: int) -> ExpertsConfig | None:
        """The experts of this layer; None where its MLP is dense."""
        return self.experts if self.experts and layer in self.experts.layers else None
