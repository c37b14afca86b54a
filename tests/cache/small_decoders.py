"""What attention over pages needs to know of a model."""

from __future__ import annotations

from awqkit.checkpoint import DecoderConfig

LAYERS = 2


def small_decoder(
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    window: int,
    max_length: int = 1024,
    softcap: float | None = None,
) -> DecoderConfig:
    """Two layers, the second with a window."""
    return DecoderConfig(
        hidden_size=64,
        num_layers=LAYERS,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=64,
        vocab_size=10,
        max_position_embeddings=max_length,
        norm_eps=1e-5,
        windows=(None, window),
        attention_softcap=softcap,
    )
