"""The canonical tensors of a decoder: Llama's names, and the shapes that a config implies."""

from __future__ import annotations

from collections.abc import Sequence

from awqkit.checkpoint.decoder_config import DecoderConfig, ExpertsConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"
#: Within a layer, as modules. The first two are there where DecoderConfig.post_norms says so.
ATTENTION_OUTPUT_NORM = "attention_output_norm"
MLP_OUTPUT_NORM = "mlp_output_norm"
MLP = "mlp"
ROUTER = "mlp.router"
SHARED_EXPERT = "mlp.shared_expert"
SHARED_EXPERT_GATE = "mlp.shared_expert_gate"


def layer_prefix(layer: int) -> str:
    return f"model.layers.{layer}."


def expert_prefix(expert: int) -> str:
    """An expert's module within its layer; gate_proj, up_proj and down_proj lie in it."""
    return f"mlp.experts.{expert}"


def mlp_modules(config: DecoderConfig, layer: int) -> tuple[str, ...]:
    """The modules of a layer that hold gate_proj, up_proj and down_proj."""
    experts = config.experts_of(layer)
    if experts is None:
        return (MLP,)
    routed = tuple(expert_prefix(expert) for expert in range(experts.num_experts))
    return routed if experts.shared_intermediate_size is None else (*routed, SHARED_EXPERT)


def layer_shapes(config: DecoderConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's tensors by their names within the layer, in the order of execution."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (hidden,)}
    for proj, rows in (("q", config.q_size), ("k", config.kv_size), ("v", config.kv_size)):
        shapes |= _linear(f"self_attn.{proj}_proj", rows, hidden, bias=config.qkv_bias)
    if config.qk_norm:
        shapes |= {f"self_attn.{proj}_norm.weight": (config.head_dim,) for proj in ("q", "k")}
    shapes |= _linear("self_attn.o_proj", hidden, config.q_size, bias=config.o_bias)
    if config.post_norms:
        shapes[f"{ATTENTION_OUTPUT_NORM}.weight"] = (hidden,)
    shapes["post_attention_layernorm.weight"] = (hidden,)
    experts = config.experts_of(layer)
    if experts is None:
        shapes |= _gated_mlp(MLP, hidden, config.intermediate_size, bias=config.mlp_bias)
    else:
        shapes |= _expert_shapes(experts, hidden)
    if config.post_norms:
        shapes[f"{MLP_OUTPUT_NORM}.weight"] = (hidden,)
    return shapes


def canonical_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a model by their canonical names, in the order of execution."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_layers):
        block = layer_shapes(config, layer)
        shapes |= {layer_prefix(layer) + name: shape for name, shape in block.items()}
    shapes[FINAL_NORM] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, config.hidden_size)
    return shapes


def in_written_order(names: Sequence[str]) -> list[str]:
    """Those of a model's tensors as a conversion writes them: beside its first block what no block
    changes, the rest in the order of execution."""
    ends = [name for name in (EMBEDDING, LM_HEAD) if name in names]
    return ends + [name for name in names if name not in ends]


def _expert_shapes(experts: ExpertsConfig, hidden: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{ROUTER}.weight": (experts.num_experts, hidden)}
    for expert in range(experts.num_experts):
        shapes |= _gated_mlp(expert_prefix(expert), hidden, experts.intermediate_size, bias=False)
    if experts.shared_intermediate_size is not None:
        shapes |= _gated_mlp(SHARED_EXPERT, hidden, experts.shared_intermediate_size, bias=False)
        shapes[f"{SHARED_EXPERT_GATE}.weight"] = (1, hidden)
    return shapes


def _gated_mlp(name: str, hidden: int, inner: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    return (
        _linear(f"{name}.gate_proj", inner, hidden, bias=bias)
        | _linear(f"{name}.up_proj", inner, hidden, bias=bias)
        | _linear(f"{name}.down_proj", hidden, inner, bias=bias)
    )


def _linear(name: str, rows: int, columns: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (rows, columns)}
    return weight | {f"{name}.bias": (rows,)} if bias else weight
