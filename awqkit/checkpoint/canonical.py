"""The canonical tensors of a decoder: Llama's names, and the shapes that a config implies."""

from __future__ import annotations

from awqkit.checkpoint.decoder_config import DecoderConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


def layer_prefix(layer: int) -> str:
    return f"model.layers.{layer}."


def layer_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's tensors by their names within the layer, in the order of execution."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (hidden,)}
    for proj, rows in (("q", config.q_size), ("k", config.kv_size), ("v", config.kv_size)):
        shapes |= _linear(f"self_attn.{proj}_proj", rows, hidden, bias=config.qkv_bias)
    if config.qk_norm:
        shapes |= {f"self_attn.{proj}_norm.weight": (config.head_dim,) for proj in ("q", "k")}
    shapes |= _linear("self_attn.o_proj", hidden, config.q_size, bias=config.o_bias)
    shapes["post_attention_layernorm.weight"] = (hidden,)
    shapes |= _linear("mlp.gate_proj", inner, hidden, bias=config.mlp_bias)
    shapes |= _linear("mlp.up_proj", inner, hidden, bias=config.mlp_bias)
    shapes |= _linear("mlp.down_proj", hidden, inner, bias=config.mlp_bias)
    return shapes


def canonical_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a model by their canonical names, in the order of execution."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    block = layer_shapes(config)
    for layer in range(config.num_layers):
        shapes |= {layer_prefix(layer) + name: shape for name, shape in block.items()}
    shapes[FINAL_NORM] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, config.hidden_size)
    return shapes


def _linear(name: str, rows: int, columns: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (rows, columns)}
    return weight | {f"{name}.bias": (rows,)} if bias else weight
