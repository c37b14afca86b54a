"""How long a 7B checkpoint takes until it can answer, read from the page cache.

    python benchmarks/loading.py --json benchmarks/results/loading.json

Writes random 4-bit weights in the shapes of InternLM2.5-7B, then loads them in fresh processes:
from the first CUDA call to logits of one token, and as a user does, from the process's start to an
answer's first token, part by part (first_token.py), for each kind of cache. One process for each of
these runs before they are timed: it leaves compiled kernels and Python's bytecode in their caches,
where installed packages have theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import save_results
from safetensors.torch import save_file
from torch import Tensor

from awqkit.checkpoint.packing import PACKED_FORMATS, PackedFormat, packed_shapes

HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY, KEY_VALUE = 4096, 14336, 32, 92544, 1024
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEY_VALUE, HIDDEN),
    "self_attn.v_proj": (KEY_VALUE, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
QUANTIZATION = {
    "awq": {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128}
    | {"zero_point": True},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": False,
                    "strategy": "group",
                    "group_size": 128,
                },
            }
        },
    },
}
LAYERS_A_FILE = 8
#: Of the cache.
POLICIES = (0, 8, 4)
#: One that fits, though it knows fewer tokens than the model.
TOKENIZER = Path(__file__).parents[1] / "examples" / "demo_model" / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", choices=PACKED_FORMATS, default="awq")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="Write the checkpoint to this new folder.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        write_checkpoint(folder, arguments.format)
        command = [sys.executable, __file__, "--measure", str(folder)]
        with tempfile.TemporaryDirectory() as bytecode:
            environment = os.environ | {"PYTHONPYCACHEPREFIX": bytecode}
            environment.pop("PYTHONDONTWRITEBYTECODE", None)
            times = range(1 + arguments.repeat)
            runs = [measured(command, environment) for _ in times][1:]
            firsts = []
            for policy in POLICIES:
                found = [first_token(folder, policy, environment) for _ in times][1:]
                firsts += [{"quant_policy": policy} | seconds for seconds in found]
    for run in (*runs, *firsts):
        print("  ".join(f"{name} {value}" for name, value in run.items()))
    if arguments.json:
        save_results(arguments.json, format=arguments.format, runs=runs, first_tokens=firsts)


def first_token(folder: Path, policy: int, environment: dict[str, str]) -> dict[str, float]:
    """Seconds of a user's process, by part."""
    script = Path(__file__).with_name("first_token.py")
    command = [sys.executable, str(script), str(folder), "--quant-policy", str(policy)]
    return measured([*command, "--started", repr(time.time())], environment)


def measured(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """What the command prints last."""
    output = subprocess.check_output(command, env=environment)
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def write_checkpoint(folder: Path, packed_format: PackedFormat) -> None:
    """A sharded checkpoint of random values."""
    folder.mkdir(exist_ok=True)
    for path in TOKENIZER.glob("*token*.json"):
        shutil.copy(path, folder)
    config = CONFIG | {"quantization_config": QUANTIZATION[packed_format]}
    (folder / "config.json").write_text(json.dumps(config))
    index = {}
    for first in range(0, LAYERS, LAYERS_A_FILE):
        tensors: dict[str, Tensor] = {}
        for layer in range(first, first + LAYERS_A_FILE):
            tensors |= layer_tensors(f"model.layers.{layer}.", packed_format)
        if first == 0:
            tensors |= outer_tensors()
        name = f"model-{first:02d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    document = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))


def layer_tensors(prefix: str, packed_format: PackedFormat) -> dict[str, Tensor]:
    tensors = {
        f"{prefix}{name}.weight": torch.ones(HIDDEN, dtype=torch.bfloat16)
        for name in ("input_layernorm", "post_attention_layernorm")
    }
    for name, (rows, columns) in LINEARS.items():
        for suffix, shape in packed_shapes(packed_format, rows, columns).items():
            tensors[f"{prefix}{name}.{suffix}"] = random_values(suffix, shape, (rows, columns))
    return tensors


def random_values(suffix: str, shape: tuple[int, ...], weight_shape: tuple[int, int]) -> Tensor:
    if suffix == "weight_shape":
        return torch.tensor(weight_shape)
    if "scale" in suffix:
        return (torch.rand(shape, device=device()) * 0.01).half().cpu()
    words = torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, device=device())
    return words.cpu()


def outer_tensors() -> dict[str, Tensor]:
    def table() -> Tensor:
        return (torch.randn(VOCABULARY, HIDDEN, device=device()) * 0.02).bfloat16().cpu()

    return {
        "model.embed_tokens.weight": table(),
        "lm_head.weight": table(),
        "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
    }


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def measure(folder: Path) -> dict[str, float]:
    """Seconds and GiB of one load."""
    from awqkit_runtime.models.loader import LanguageModel, load_decoder

    start = time.perf_counter()
    torch.empty(1, device="cuda")
    context = time.perf_counter()
    decoder = load_decoder(folder, device="cuda")
    torch.cuda.synchronize()
    loaded = time.perf_counter()
    peak = torch.cuda.max_memory_allocated()
    weights = torch.cuda.memory_allocated()
    LanguageModel(decoder)(torch.tensor([[1]])).sum().item()
    ready = time.perf_counter()
    return {
        "cuda_context_s": round(context - start, 2),
        "load_s": round(loaded - context, 2),
        "first_token_s": round(ready - loaded, 2),
        "ready_s": round(ready - start, 2),
        "weights_gib": round(weights / 2**30, 3),
        "peak_gib": round(peak / 2**30, 3),
    }


if __name__ == "__main__":
    main()
