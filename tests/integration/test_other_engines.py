"""Our checkpoints in other people's code: the transformers library, and the format's own text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from awqkit import QuantConfig, quantize
from awqkit.checkpoint import open_checkpoint
from awqkit.checkpoint.families import find_family
from awqkit.checkpoint.written_layout import Assembly, WrittenLayout
from awqkit_runtime import load
from tests.tiny_models import EXPERT_FAMILIES, write_tiny_model

ROOT = Path(__file__).parents[2]
#: The last release that takes an asymmetric checkpoint on a default load; `make test` fetches it.
OLDER = ROOT / ".cache" / "compressed-tensors-0.17.1"
#: All models are loaded in one go, in the first of these tests.
pytestmark = pytest.mark.timeout(900)
SETTINGS = {"calib_samples": 8, "calib_seqlen": 32, "evaluate": False}


INT4_HEAD, INT4_EMBEDDING = {"lm_head": "int4"}, {"embeddings": "int4"}
#: In compressed-tensors form: family, what its shape has besides, and what becomes of the ends.
FORMS = {
    "llama with an int4 head": ("llama", {}, INT4_HEAD),
    "mistral": ("mistral", {"sliding_window": 10}, {}),
    "internlm2 with an int4 embedding": (
        "internlm2",
        {"tie_word_embeddings": False},
        INT4_EMBEDDING,
    ),
    "tied qwen2": ("qwen2", {"tie_word_embeddings": True}, {}),
    "tied qwen2 with an int4 embedding": ("qwen2", {"tie_word_embeddings": True}, INT4_EMBEDDING),
    "qwen3 with a dense down_proj": ("qwen3", {"intermediate_size": 192}, {}),
    "phi3": ("phi3", {}, {}),
    "gemma2 with an int4 head": ("gemma2", {"tie_word_embeddings": False}, INT4_HEAD),
    "gemma3": ("gemma3", {"num_hidden_layers": 2, "layer_types": None}, {}),
}
WIDE_FORMS = {
    "llama with an int8 head": ("llama", {}, {"lm_head": "int8"}),
    "llama with an int8 embedding": ("llama", {}, {"embeddings": "int8"}),
    "tied llama with an int8 embedding": (
        "llama",
        {"tie_word_embeddings": True},
        {"embeddings": "int8"},
    ),
}
#: Those that the older release is tried with.
OLD_FORMS = ("llama with an int4 head", "mistral", "llama with an int8 head")


def quantized(folder: Path, family: str, form: str, *, ends=MappingProxyType({}), **shape) -> Path:
    source = write_tiny_model(folder / "model", family, dtype=torch.bfloat16, **shape)
    config = QuantConfig(format=form, quality="fast", **ends, **SETTINGS)  # type: ignore[arg-type]
    quantize(source, folder / "int4", config, calib_dataset="self", device="cpu")
    return folder / "int4"


def random_tokens() -> torch.Tensor:
    return torch.randint(3, 320, (2, 23), generator=torch.Generator().manual_seed(0))


def logits_by_transformers(
    folders: list[Path], mode: str, *, packages: Path | None = None
) -> dict[str, torch.Tensor]:
    """By the names of their parents."""
    return answers_of_transformers(folders, mode, "logits.pt", packages=packages)


def answers_of_transformers(
    folders: list[Path], mode: str, written: str, *, packages: Path | None = None
) -> dict[str, Any]:
    """By the names of their parents; in a process of its own, where another release can be used."""
    script = Path(__file__).parent / "transformers_logits.py"
    tokens = folders[0].parent / "tokens.pt"
    torch.save(random_tokens(), tokens)
    result = subprocess.run(
        [sys.executable, str(script), mode, str(tokens), *map(str, folders)],
        env={**os.environ, **({"PYTHONPATH": str(packages)} if packages else {})},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return {folder.parent.name: torch.load(folder.parent / written) for folder in folders}


def assert_same_logits(folder: Path, expected: torch.Tensor) -> None:
    actual = load(folder, device="cpu", dtype=torch.float32)(random_tokens())
    assert (actual - expected).norm() / expected.norm() < 1e-3


@pytest.fixture(scope="module")
def compressed(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("compressed")
    return {
        name: quantized(root / name, family, "compressed-tensors", ends=ends, **shape)
        for name, (family, shape, ends) in {**FORMS, **WIDE_FORMS}.items()
    }


@pytest.fixture(scope="module")
def logits_of_newest(compressed: dict[str, Path]) -> dict[str, torch.Tensor]:
    return logits_by_transformers([compressed[name] for name in FORMS], "dequantize")


@pytest.mark.parametrize("form", FORMS)
def test_newest_compressed_tensors(compressed, logits_of_newest, form: str) -> None:
    assert_same_logits(compressed[form], logits_of_newest[form])


def test_newest_compressed_tensors_refuses_8_bits_and_reads_nothing_else(compressed) -> None:
    """It unpacks everything by the first group, which is the wide one therefore."""
    folders = [compressed[name] for name in WIDE_FORMS]
    for name, refusal in answers_of_transformers(folders, "refused", "refusal.pt").items():
        assert "issues during automatic conversion of the weights" in refusal, name


@pytest.mark.parametrize("family", ["gemma2", "gemma3", *EXPERT_FAMILIES])
def test_dequantized_by_hand_under_the_names_that_are_written(tmp_path, family: str) -> None:
    """The library reads experts in compressed-tensors form only where they are symmetric."""
    import transformers

    folder = quantized(tmp_path, family, "awq", num_hidden_layers=1, layer_types=None)
    plain = dequantized_by_hand(folder, tmp_path / "plain")
    oracle, report = transformers.AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        expected = oracle(random_tokens()).logits
    assert_same_logits(folder, expected)


def dequantized_by_hand(folder: Path, out: Path) -> Path:
    """The same weights as floats, in the family's own layout."""
    checkpoint = open_checkpoint(folder)
    config = dict(checkpoint.raw_config)
    del config["quantization_config"]
    assembly = Assembly(WrittenLayout(checkpoint.config, find_family(config)))
    tensors = {}
    for name in checkpoint.names():
        weight = checkpoint.weight(name)
        dense = weight.float() if isinstance(weight, torch.Tensor) else weight.dequantize()
        if (complete := assembly.add(name, dense)) is not None:
            tensors |= dict([complete])
    out.mkdir()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.skipif(not OLDER.is_dir(), reason="make test fetches compressed-tensors 0.17.1")
def test_older_compressed_tensors_by_default_load(compressed) -> None:
    folders = [compressed[name] for name in OLD_FORMS]
    for name, theirs in logits_by_transformers(folders, "default", packages=OLDER).items():
        assert_same_logits(compressed[name], theirs)


@pytest.mark.parametrize("family", ["llama", "internlm2"])
def test_awq_form_unpacks_by_its_description(tmp_path, family: str) -> None:
    """Nibble i of a word holds column 8c + [0,2,4,6,1,3,5,7][i]; w = (q - z) * s."""
    folder = quantized(tmp_path, family, "awq")
    checkpoint, stored = open_checkpoint(folder), load_file(folder / "model.safetensors")

    def columns(words: torch.Tensor) -> torch.Tensor:
        rows, count = words.shape
        result = torch.zeros(rows, count * 8, dtype=torch.long)
        for i, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            result[:, column::8] = (words.long() >> (4 * i)) & 15
        return result

    packed = [name for name in stored if name.endswith(".qweight")]
    assert len(packed) == 14
    for name in packed:
        stem = name.removesuffix(".qweight")
        codes, zeros = columns(stored[name]), columns(stored[f"{stem}.qzeros"])
        scales = stored[f"{stem}.scales"].double()
        assert stored[f"{stem}.scales"].dtype == torch.float16
        groups = torch.arange(codes.shape[0]) // 128
        weight = ((codes - zeros[groups]) * scales[groups]).T
        assert torch.equal(checkpoint.quantized(f"{stem}.weight").dequantize().double(), weight)


def test_loaders_see_what_the_config_promises(tmp_path) -> None:
    folder = quantized(tmp_path, "internlm2", "awq", intermediate_size=192)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "auto_map" not in config
    method = config["quantization_config"]
    assert method["quant_method"] == "awq" and method["version"] == "gemm"
    assert method["bits"] == 4 and method["group_size"] == 128 and method["zero_point"] is True
    assert any("down_proj" in name for name in method["modules_to_not_convert"])
