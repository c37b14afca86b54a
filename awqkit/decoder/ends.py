"""What lies before the first block and after the last one."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig, QuantizedWeight
from awqkit.decoder.norm import rms_norm
from awqkit.decoder.softcap import soft_cap


def embed(
    tokens: Tensor,
    embedding: Tensor | QuantizedWeight,
    config: DecoderConfig,
    dtype: torch.dtype,
) -> Tensor:
    """int64 [...] → [..., hidden] of dtype; embedding: [vocab, hidden] of any, or quantized."""
    if isinstance(embedding, QuantizedWeight):
        rows = embedding.select(tokens.flatten()).dequantize(dtype).view(*tokens.shape, -1)
    else:
        rows = embedding[tokens].to(dtype)
    return scale_embedding(rows, config, dtype)


def scale_embedding(x: Tensor, config: DecoderConfig, dtype: torch.dtype) -> Tensor:
    """Embedded tokens times the model's factor, which is rounded to dtype before it multiplies."""
    if config.embedding_scale is None:
        return x
    # A number and not a tensor, which would have to get to the device of x first.
    return x * float(torch.tensor(config.embedding_scale, dtype=dtype))


def final_logits(hidden: Tensor, norm: Tensor, head: Tensor, config: DecoderConfig) -> Tensor:
    """hidden [..., hidden] after the last block → float32 [..., vocab].

    norm: the final norm's weight [hidden]; head: [vocab, hidden]; both in hidden's dtype.
    """
    x = rms_norm(hidden, norm, config.norm_eps, unit_offset=config.norm_unit_offset)
    return soft_cap((x @ head.T).float(), config.final_softcap)
