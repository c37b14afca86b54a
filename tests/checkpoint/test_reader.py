from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit.checkpoint import (
    CheckpointError,
    UnsupportedModelError,
    open_checkpoint,
)
from tests.checkpoint.folders import Tensors, edit_config, edit_tensors
from tests.tiny_models import FAMILIES, random_model, write_tiny_model

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "llama": [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}],
    "internlm2": [{}, {"attention_bias": True}, {"num_key_value_heads": 4}],
    "mistral": [{}, {"sliding_window": None, "head_dim": 16}],
    "qwen2": [{}, {"tie_word_embeddings": True}],
    "qwen3": [{}, {"attention_bias": True, "head_dim": 64}],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("family", "options"), [(family, o) for family in FAMILIES for o in OPTIONS[family]]
)
def test_tensors_are_those_of_the_model(
    tmp_path: Path, family: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    folder = write_tiny_model(tmp_path, family, seed=5, dtype=dtype, **options)
    twin = "llama" if family == "internlm2" else family
    expected = random_model(twin, seed=5, dtype=dtype, **options).state_dict()
    if options.get("tie_word_embeddings"):
        del expected["lm_head.weight"]
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "hf"
    assert checkpoint.config.dtype == str(dtype).removeprefix("torch.")
    assert set(checkpoint.names()) == set(expected)
    for name, tensor in expected.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert not checkpoint.is_quantized(name)
        assert torch.equal(checkpoint.tensor(name), tensor)
        assert torch.equal(checkpoint.weight(name), tensor)
    assert checkpoint.weight_bytes() == sum(tensor.nbytes for tensor in expected.values())


def test_block_names_are_relative(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_model(tmp_path, "qwen2"))
    block = checkpoint.block(1)
    prefix = "model.layers.1."
    assert {prefix + name for name in block} == {n for n in checkpoint.names() if prefix in n}
    assert torch.equal(
        block["self_attn.q_proj.bias"], checkpoint.tensor(prefix + "self_attn.q_proj.bias")
    )


def test_shards_give_the_same_tensors(tmp_path: Path) -> None:
    whole = open_checkpoint(write_tiny_model(tmp_path / "one", seed=2))
    parts = open_checkpoint(write_tiny_model(tmp_path / "many", seed=2, max_shard_size="100KB"))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert whole.names() == parts.names()
    assert all(torch.equal(whole.tensor(n), parts.tensor(n)) for n in whole.names())


def test_dtype_comes_from_the_tensors_where_config_is_silent(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, dtype=torch.float16)
    assert open_checkpoint(edit_config(folder, dtype=...)).config.dtype == "float16"


def test_tied_head_that_is_stored_nevertheless_is_ignored(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, tie_word_embeddings=True)
    edit_tensors(folder, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    assert "lm_head.weight" not in open_checkpoint(folder).names()


@pytest.mark.parametrize("change", ["one value in the last row", "other dtype"])
def test_tied_head_that_differs_from_the_embedding_is_refused(tmp_path: Path, change: str) -> None:
    folder = write_tiny_model(tmp_path, tie_word_embeddings=True)

    def add_head(tensors: dict[str, torch.Tensor]) -> None:
        head = tensors["model.embed_tokens.weight"].clone()
        if change == "other dtype":
            head = head.half()
        else:
            head[-1, -1] += 1
        tensors["lm_head.weight"] = head

    edit_tensors(folder, add_head)
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        open_checkpoint(folder)


def test_old_rotary_buffers_are_ignored(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(folder, lambda t: t | {name: torch.ones(16)})
    assert name not in open_checkpoint(folder).names()


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"num_hidden_layers": 3}),
        ("llama", {"num_hidden_layers": 1}),
        ("llama", {"num_hidden_layers": 10**15}),
        ("llama", {"hidden_size": 256}),
        ("llama", {"intermediate_size": 128}),
        ("llama", {"vocab_size": 321}),
        ("llama", {"num_attention_heads": 8}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"head_dim": 64}),
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"model_type": "qwen3"}),
        ("llama", {"model_type": "internlm2"}),
        ("qwen2", {"model_type": "llama"}),
        ("qwen3", {"model_type": "llama"}),
        ("internlm2", {"num_key_value_heads": 4}),
        ("internlm2", {"bias": True}),
    ],
)
def test_config_that_does_not_match_the_tensors(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    folder = edit_config(write_tiny_model(tmp_path, family), **changes)
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.input_layernorm.weight",
    ],
)
def test_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    folder = edit_tensors(write_tiny_model(tmp_path), without(name))
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(folder)


def test_unexpected_tensor_is_named(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_norm.weight"
    folder = edit_tensors(write_tiny_model(tmp_path), lambda t: t | {name: torch.ones(32)})
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(folder)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float64, torch.int8])
def test_dtypes_that_are_no_weights_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    folder = write_tiny_model(tmp_path)
    edit_tensors(folder, lambda t: t | {name: t[name].to(dtype)})
    with pytest.raises(UnsupportedModelError, match=f"{name} has dtype"):
        open_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("family", "stored", "canonical"),
    [
        ("llama", "model.norm.weight", "model.norm.weight"),
        ("llama", "model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"),
        (
            "internlm2",
            "model.layers.0.attention.wqkv.weight",
            "model.layers.0.self_attn.v_proj.weight",
        ),
    ],
)
def test_nan_and_infinity_are_refused_with_the_name(
    tmp_path: Path, family: str, stored: str, canonical: str, dtype: torch.dtype, value: float
) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[stored].view(-1)[-1] = value

    folder = edit_tensors(write_tiny_model(tmp_path, family, dtype=dtype), spoil)
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match=f"{stored} holds NaN or infinite"):
        checkpoint.tensor(canonical)


def test_format_that_was_asked_for(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    assert open_checkpoint(folder, model_format="hf").format == "hf"
    with pytest.raises(CheckpointError, match="'hf' form, but 'awq' was asked for"):
        open_checkpoint(folder, model_format="awq")


def test_dense_weights_have_no_codes(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_model(tmp_path))
    with pytest.raises(CheckpointError, match="unquantized"):
        checkpoint.quantized("model.layers.0.mlp.up_proj.weight")


def test_folder_without_config(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": 1, "a": 2}', "\xff"])
def test_config_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    folder = write_tiny_model(tmp_path)
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize("changes", [{"hidden_size": "wide"}, {"num_hidden_layers": 3}])
def test_errors_about_the_content_name_the_folder(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = edit_config(write_tiny_model(tmp_path / "model"), **changes)
    with pytest.raises(CheckpointError, match=str(folder)) as caught:
        open_checkpoint(folder)
    assert str(caught.value).count(str(folder)) == 1
