"""Models of a given shape with random weights, and random text for them, made on the fly."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

WORDS_A_DOCUMENT = 1000


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A dense decoder's; heads are hidden_size / num_heads wide."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int


SHAPES = {
    "internlm2.5-7b": Shape(
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        intermediate_size=14336,
        vocab_size=92544,
    ),
    "llama-70b": Shape(
        hidden_size=8192,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        intermediate_size=28672,
        vocab_size=128256,
    ),
    "tiny": Shape(
        hidden_size=256,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=512,
        vocab_size=512,
    ),
}


def write_random_model(folder: Path, shape: Shape, *, layers: int, device: torch.device) -> None:
    """A folder in Hugging Face form, BF16. All layers hold the same numbers, which costs less."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    block = _block(shape, device)
    ends = {
        "model.embed_tokens.weight": _matrix(shape.vocab_size, shape.hidden_size, device),
        "model.norm.weight": torch.ones(shape.hidden_size, dtype=torch.bfloat16),
        "lm_head.weight": _matrix(shape.vocab_size, shape.hidden_size, device),
    }
    parts = [ends] + [
        {f"model.layers.{layer}.{name}": tensor for name, tensor in block.items()}
        for layer in range(layers)
    ]
    weight_map = {}
    for number, tensors in enumerate(parts):
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(_config(shape, layers)))
    _write_tokenizer(folder, shape.vocab_size)


def write_random_text(path: Path, *, vocab_size: int, words: int) -> None:
    """Words of the model's tokenizer, each as likely; a token a word, a document a line."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(-(-words // WORDS_A_DOCUMENT)):
            line = (f"w{draw.randrange(vocab_size)}" for _ in range(WORDS_A_DOCUMENT))
            file.write(" ".join(line) + "\n\n")


def _block(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    hidden, inner = shape.hidden_size, shape.intermediate_size
    keys = hidden // shape.num_heads * shape.num_kv_heads
    linears = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    norms = ("input_layernorm", "post_attention_layernorm")
    return {
        **{f"{name}.weight": _matrix(*size, device) for name, size in linears.items()},
        **{f"{name}.weight": torch.ones(hidden, dtype=torch.bfloat16) for name in norms},
    }


def _matrix(rows: int, columns: int, device: torch.device) -> Tensor:
    return (torch.randn(rows, columns, device=device) * 0.02).bfloat16().cpu()


def _config(shape: Shape, layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": 32768,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
    }


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    vocabulary = {f"w{index}": index for index in range(vocab_size)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
