"""Small random models whose keys are loud in some channels, as biases make them in Qwen2."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.tiny_models import TINY_SHAPE, write_tiny_model

#: Pairs of channels that the rotary embedding turns together, of a head of 32: one in 2.4 and one
#: in 8 · 10³ positions.
FAST_PAIR, SLOW_PAIR = 1, 13


def write_loud_model(folder: Path, *, pair: int, bias: float) -> Path:
    """A Qwen2 with biases of ±bias on one pair of channels of every key."""
    write_tiny_model(folder, "qwen2", seed=1)
    path, half = folder / "model.safetensors", TINY_SHAPE["head_dim"] // 2
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith("k_proj.bias"):
            heads = tensor.view(-1, 2 * half)
            heads[:, pair] += bias
            heads[:, pair + half] -= bias
    save_file(tensors, path, metadata={"format": "pt"})
    return folder
