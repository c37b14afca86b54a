"""The decoder as the engine runs it: a step's tokens in, hidden states and logits out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from awqkit.checkpoint import DecoderConfig, PackedWeight, QuantizedWeight
from awqkit.checkpoint.canonical import (
    ATTENTION_OUTPUT_NORM,
    EMBEDDING,
    LM_HEAD,
    MLP_OUTPUT_NORM,
    ROUTER,
    SHARED_EXPERT,
    SHARED_EXPERT_GATE,
    expert_prefix,
)
from awqkit.decoder import scale_embedding, soft_cap
from awqkit_runtime.layers.attention import Attention, AttentionState
from awqkit_runtime.layers.embedding import build_ends
from awqkit_runtime.layers.experts import SharedExpert, SparseMLP
from awqkit_runtime.layers.linear import LinearWeights, build_linear
from awqkit_runtime.layers.mlp import GatedMLP
from awqkit_runtime.layers.norm import AddingNorm, RMSNorm
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.layers.rotary import RotaryAngles

#: Canonical names, relative to the layer where they belong to one.
Weights = Mapping[str, Tensor | QuantizedWeight | PackedWeight]


class DecoderLayer(nn.Module):
    """norm → attention → add, norm → MLP → add, on [T, hidden].

    Models with post-norms have a further norm before each add.
    """

    def __init__(
        self, config: DecoderConfig, layer: int, block: Weights, placement: Placement
    ) -> None:
        super().__init__()
        q_norm, k_norm = (
            _norm(block, f"self_attn.{name}_norm", config, placement) if config.qk_norm else None
            for name in "qk"
        )
        self.input_norm: AddingNorm = _norm(block, "input_layernorm", config, placement)
        self.attention = Attention(
            config,
            layer,
            [_linear(block, f"self_attn.{name}_proj") for name in "qkv"],
            _linear(block, "self_attn.o_proj"),
            None if q_norm is None or k_norm is None else (q_norm, k_norm),
            placement,
        )
        self.attention_output_norm = _post_norm(block, ATTENTION_OUTPUT_NORM, config, placement)
        self.mlp_norm: AddingNorm = _norm(block, "post_attention_layernorm", config, placement)
        self.mlp = _mlp(block, layer, config, placement)
        self.mlp_output_norm = _post_norm(block, MLP_OUTPUT_NORM, config, placement)

    def forward(
        self,
        x: Tensor,
        delta: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        state: AttentionState,
    ) -> tuple[Tensor, Tensor]:
        """The residual stream and what is still to be added to it: each norm adds, then norms."""
        x, normed = self.input_norm.after_add(x, delta)
        delta = self.attention_output_norm(self.attention(normed, rotary, state))
        x, normed = self.mlp_norm.after_add(x, delta)
        return x, self.mlp_output_norm(self.mlp(normed))


class Decoder(nn.Module):
    """Embedding, layers, final norm and head. Built by models.loader."""

    def __init__(
        self,
        config: DecoderConfig,
        layers: list[DecoderLayer],
        outer: Weights,
        placement: Placement,
        *,
        session_len: int,
    ) -> None:
        """outer: the weights outside the layers; lm_head.weight is absent where it is tied."""
        super().__init__()
        self.config = config
        self.placement = placement
        self.session_len = session_len
        self.embedding, self.head = build_ends(outer[EMBEDDING], outer.get(LM_HEAD), placement)
        self.rotary = RotaryAngles(config, session_len=session_len, device=placement.device)
        self.layers = nn.ModuleList(layers)
        self.norm: AddingNorm = _norm(outer, "model.norm", config, placement)

    @property
    def device(self) -> torch.device:
        return self.placement.device

    @property
    def dtype(self) -> torch.dtype:
        """Of dense weights and of unquantized cache pages; activations may be wider."""
        return self.placement.dtype

    @torch.no_grad()
    def hidden(
        self,
        token_ids: Tensor,
        positions: Tensor,
        state: AttentionState,
        *,
        rotary: RotaryAngles | None = None,
    ) -> Tensor:
        """token_ids, positions: int64 [T], of any sequences → [T, hidden] after the final norm.

        rotary replaces the angles that were fixed at load.
        """
        # Angles come first: a layer's kernels read them ahead of the kernel in front of theirs, so
        # another one that nothing overlaps has to lie between.
        angles = (rotary or self.rotary)(positions)
        x = scale_embedding(self.embedding(token_ids), self.config, self.dtype)
        delta = None
        for layer, tables in zip(self.layers, angles, strict=True):
            x, delta = layer(x, delta, tables, state)
        return self.norm.after_add(x, delta)[1]

    @torch.no_grad()
    def head_product(self, hidden: Tensor) -> Tensor:
        """[R, hidden] → [R, vocab] as the head gives it: the activations' dtype, no soft cap."""
        product: Tensor = self.head(hidden)
        return product

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] → float32 [R, vocab]."""
        return soft_cap(self.head_product(hidden).float(), self.config.final_softcap)


def _dense(weights: Weights, name: str) -> Tensor:
    tensor = weights[name]
    if isinstance(tensor, PackedWeight):
        tensor = tensor.unpack()
    return tensor.dequantize() if isinstance(tensor, QuantizedWeight) else tensor


def _norm(weights: Weights, name: str, config: DecoderConfig, placement: Placement) -> RMSNorm:
    return RMSNorm(
        _dense(weights, f"{name}.weight"),
        placement,
        eps=config.norm_eps,
        unit_offset=config.norm_unit_offset,
    )


def _post_norm(block: Weights, name: str, config: DecoderConfig, placement: Placement) -> nn.Module:
    return _norm(block, name, config, placement) if config.post_norms else nn.Identity()


def _mlp(block: Weights, layer: int, config: DecoderConfig, placement: Placement) -> nn.Module:
    experts = config.experts_of(layer)
    if experts is None:
        return _gated_mlp(block, "mlp", config, placement)
    shared = None
    if experts.shared_intermediate_size is not None:
        shared = SharedExpert(
            _gated_mlp(block, SHARED_EXPERT, config, placement),
            build_linear(_linear(block, SHARED_EXPERT_GATE), placement),
        )
    return SparseMLP(
        experts,
        placement.weight(_dense(block, f"{ROUTER}.weight")),
        [
            _gated_mlp(block, expert_prefix(expert), config, placement)
            for expert in range(experts.num_experts)
        ],
        shared,
    )


def _gated_mlp(block: Weights, name: str, config: DecoderConfig, placement: Placement) -> GatedMLP:
    return GatedMLP(
        [_linear(block, f"{name}.{part}_proj") for part in ("gate", "up")],
        _linear(block, f"{name}.down_proj"),
        placement,
        activation=config.activation,
    )


def _linear(block: Weights, name: str) -> LinearWeights:
    bias = _dense(block, f"{name}.bias") if f"{name}.bias" in block else None
    return LinearWeights(weight=block[f"{name}.weight"], bias=bias)
