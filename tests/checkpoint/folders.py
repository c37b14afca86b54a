"""Helpers that bend model folders in one detail, and a plain quantizer to fill packed ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from awqkit.checkpoint import Checkpoint, QuantizedWeight, open_checkpoint, write_checkpoint
from awqkit.checkpoint.canonical import EMBEDDING, LM_HEAD
from awqkit.checkpoint.shard_writer import MAX_SHARD_BYTES
from tests.tiny_models import write_tiny_model

Tensors = dict[str, Tensor]


def edit_config(folder: Path, **changes: Any) -> Path:
    """Change fields of config.json; a value of `...` removes the field."""
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))
    return folder


def edit_tensors(folder: Path, edit: Callable[[Tensors], Tensors | None]) -> Path:
    """Rewrite model.safetensors after `edit`, which changes the tensors in place or returns new."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edited = edit(tensors)
    save_file(tensors if edited is None else edited, path, metadata={"format": "pt"})
    return folder


def random_codes(
    out_features: int, in_features: int, *, seed: int, bits: int = 4
) -> QuantizedWeight:
    """A quantized weight that uses every code and zero point."""
    generator = torch.Generator().manual_seed(seed)
    groups = (out_features, in_features // 128)
    return QuantizedWeight(
        codes=torch.randint(0, 2**bits, (out_features, in_features), generator=generator).byte(),
        scales=(torch.rand(groups, generator=generator) * 0.02 + 0.001).half(),
        zeros=torch.randint(0, 2**bits, groups, generator=generator).byte(),
        bits=bits,
    )


def equal(a: QuantizedWeight | Tensor, b: QuantizedWeight | Tensor) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("codes", "scales", "zeros"))


def quantized_weights(
    source: Checkpoint, *, seed: int = 0, dtype: torch.dtype | None = None
) -> list[tuple[str, Tensor | QuantizedWeight]]:
    """All weights of a plain checkpoint, with random codes in the linears that groups divide."""
    weights: list[tuple[str, Tensor | QuantizedWeight]] = []
    for number, name in enumerate(source.names()):
        shape = source.shape(name)
        if "_proj.weight" in name and shape[1] % 128 == 0 and shape[0] % 8 == 0:
            weights.append((name, random_codes(*shape, seed=seed + number)))
        else:
            weights.append((name, source.tensor(name).to(dtype or torch.bfloat16)))
    return weights


def write_quantized_ends(
    folder: Path,
    *,
    embedding_bits: int | None,
    head_bits: int,
    tied: bool,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    **shape: Any,
) -> Path:
    """A model with random codes in the blocks, the embedding and, unless it is tied, the head.

    embedding_bits: None for one that stays dense.
    """
    source = open_checkpoint(write_tiny_model(folder / "plain", tie_word_embeddings=tied, **shape))
    weights = dict(quantized_weights(source))
    for name, bits in ((EMBEDDING, embedding_bits), (LM_HEAD, head_bits)):
        if name in weights and bits is not None:
            weights[name] = random_codes(*source.shape(name), seed=bits, bits=bits)
    out = folder / "packed"
    write_checkpoint(
        out,
        weights.items(),
        source=source,
        format="compressed-tensors",
        max_shard_bytes=max_shard_bytes,
    )
    return out


def write_dequantized(folder: Path, out: Path) -> Path:
    """A quantized checkpoint in canonical names as a plain one of the same weights in float32."""
    checkpoint = open_checkpoint(folder)
    raw = dict(checkpoint.raw_config) | {"dtype": "float32"}
    del raw["quantization_config"]
    tensors = {
        name: checkpoint.quantized(name).dequantize()
        if checkpoint.is_quantized(name)
        else checkpoint.tensor(name).float()
        for name in checkpoint.names()
    }
    out.mkdir()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(raw))
    return out
