"""Write the trained network as a Hugging Face folder."""

import shutil
from pathlib import Path

import torch
from network import Llama, Shape
from safetensors.torch import save_file
from vocabulary import BOS, EOS, PAD, TURN_END, token_id, write_json

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def round_to_bfloat16(model: Llama) -> None:
    """Give every weight, still float32, the value that the file will hold."""
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16).to(weight.dtype)


def save_model(model: Llama, *, tokenizer_folder: Path, out: Path) -> None:
    """BF16 weights, configuration, generation defaults and the tokenizer's files."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", _config(model.shape))
    write_json(out / "generation_config.json", _generation_config())
    for name in _TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, out / name)


def _config(shape: Shape) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": token_id(BOS),
        "eos_token_id": token_id(EOS),
        "pad_token_id": token_id(PAD),
    }


def _generation_config() -> dict:
    return {
        "bos_token_id": token_id(BOS),
        "eos_token_id": [token_id(EOS), token_id(TURN_END)],
        "pad_token_id": token_id(PAD),
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.95,
    }
