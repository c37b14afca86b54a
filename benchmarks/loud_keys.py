"""Copies of a Llama whose keys are loud in two channels of each head, as in Qwen2 checkpoints.

    python benchmarks/loud_keys.py MODEL OUT --kind slow|fast|ratio --size 16

slow, fast: a bias of ±size on a pair of channels that the rotary embedding turns slowly, or fast,
which makes another model. ratio: keys of two pairs times size and their queries divided by it,
which computes what MODEL does.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=("slow", "fast", "ratio"), required=True)
    parser.add_argument("--size", type=float, required=True)
    options = parser.parse_args()
    write_loud_copy(options.model, options.out, kind=options.kind, size=options.size)


def write_loud_copy(model: Path, out: Path, *, kind: str, size: float) -> None:
    """A Qwen2, since its projections have biases."""
    shutil.copytree(model, out)
    config = json.loads((out / "config.json").read_text())
    config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    (out / "config.json").write_text(json.dumps(config, indent=1))
    tensors = load_file(out / "model.safetensors")
    for layer in range(config["num_hidden_layers"]):
        _plant(tensors, f"model.layers.{layer}.self_attn.", config["head_dim"], kind, size)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def _plant(tensors: dict[str, Tensor], prefix: str, head_dim: int, kind: str, size: float) -> None:
    for name in "qkv":
        weight = tensors[f"{prefix}{name}_proj.weight"]
        tensors[f"{prefix}{name}_proj.bias"] = torch.zeros(weight.shape[0], dtype=weight.dtype)
    half = head_dim // 2
    if kind == "ratio":
        for pair in (half // 8, half // 4):
            for channel in (pair, pair + half):
                tensors[f"{prefix}k_proj.weight"][channel::head_dim] *= size
                tensors[f"{prefix}q_proj.weight"][channel::head_dim] /= size
        return
    pair = half // 10 if kind == "fast" else half - 2
    bias = tensors[f"{prefix}k_proj.bias"]
    bias[pair::head_dim], bias[pair + half :: head_dim] = size, -size


if __name__ == "__main__":
    main()
