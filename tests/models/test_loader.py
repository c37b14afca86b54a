"""Loading: session lengths, devices, refusals, quantized checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from awqkit.checkpoint import open_checkpoint
from awqkit_runtime.errors import CheckpointError, ConfigError, UnsupportedModelError
from awqkit_runtime.models.loader import load, load_decoder, resolve_dtype
from tests.models.paged_generation import generate_greedily
from tests.tiny_models import random_model, write_tiny_model

DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "llama")


def test_the_session_defaults_to_the_models_maximum(folder: Path) -> None:
    assert load_decoder(folder, device="cpu").session_len == 512
    assert load_decoder(folder, device="cpu", session_len=100).session_len == 100


def test_a_session_beyond_the_models_reach_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"session_len is 513.*at most 512"):
        load_decoder(folder, device="cpu", session_len=513)


def test_a_dynamic_base_is_fixed_by_the_session_length(tmp_path: Path) -> None:
    """Cached keys stay valid: every token sees the base that the whole session will need."""
    overrides = {"max_position_embeddings": 64, **DYNAMIC}
    folder = write_tiny_model(tmp_path / "model", "llama", **overrides)
    decoder = load_decoder(folder, device="cpu", session_len=160)
    prompt = torch.randint(3, 320, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = generate_greedily(decoder, prompt, 60, quant_policy=0, chunk=30)
    reference = random_model("llama", **overrides)
    with torch.no_grad():  # The library takes its base from the length of this one input, 160.
        expected = reference(torch.tensor([ids])).logits[0, 99:-1].argmax(-1)
    assert ids[100:] == expected.tolist()


def test_a_window_shorter_than_the_text_holds_in_pages(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model", "mistral", sliding_window=70)
    decoder = load_decoder(folder, device="cpu")
    prompt = torch.randint(3, 320, (150,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = generate_greedily(decoder, prompt, 40, quant_policy=0, chunk=64)
    with torch.no_grad():
        logits = random_model("mistral", sliding_window=70)(torch.tensor([ids])).logits
    assert ids[150:] == logits[0, 149:-1].argmax(-1).tolist()


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_decoder(tmp_path / "nothing", device="cpu")
    with pytest.raises(ConfigError, match="dtype is 'int8'"):
        load(folder, device="cpu", dtype="int8")
    with pytest.raises(ConfigError, match="device is 'tpu'"):
        load(folder, device="tpu")
    with pytest.raises(CheckpointError, match="awq"):
        load_decoder(folder, device="cpu", model_format="awq")


def test_features_that_are_not_computed_are_refused(folder: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "gelu"
    checkpoint.mkdir()
    for file in folder.iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    raw = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(raw | {"hidden_act": "gelu_pytorch_tanh"}))
    with pytest.raises(UnsupportedModelError, match="gelu"):
        load(checkpoint, device="cpu")


@pytest.mark.parametrize(
    "ids", [torch.arange(5), torch.zeros(1, 5), torch.zeros(1, 0, dtype=torch.int64)]
)
def test_ids_of_a_wrong_kind_are_refused(folder: Path, ids: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="ids must be"):
        load(folder, device="cpu")(ids)


@pytest.mark.parametrize("bad", [-1, 320])
def test_ids_outside_the_vocabulary_are_refused(folder: Path, bad: int) -> None:
    with pytest.raises(ValueError, match=f"ids must lie in 0…319, not in .*{bad}"):
        load(folder, device="cpu")(torch.tensor([[5, bad]]))


@pytest.mark.parametrize(
    ("named", "asked", "device", "expected"),
    [
        ("float16", "auto", "cuda:0", torch.bfloat16),
        ("float16", "auto", "cpu", torch.float16),
        ("float16", "float16", "cuda:0", torch.float16),
        ("float32", "auto", "cuda:0", torch.float32),
        ("bfloat16", "auto", "cuda:0", torch.bfloat16),
    ],
)
def test_a_gpu_computes_in_the_kernels_dtype_unless_asked(
    folder: Path, named: str, asked: str, device: str, expected: torch.dtype
) -> None:
    config = replace(open_checkpoint(folder).config, dtype=named)
    assert resolve_dtype(config, asked, torch.device(device)) == expected
