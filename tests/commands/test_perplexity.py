"""`perplexity` from the command line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from awqkit.checkpoint.tokenizer import encode_prompt, load_tokenizer
from awqkit_runtime import load
from awqkit_runtime.cli import main
from tests.engine.chat_model import write_chat_model
from tests.engine.tokenizers_for_tests import TEXT, shared_folder
from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 3, encoding="utf-8")
    return path


def perplexity(model: Path | str, *options: str | Path) -> Result:
    return CliRunner().invoke(main, ["perplexity", str(model), *map(str, options)])


def figures(model: Path | str, *options: str | Path) -> dict[str, Any]:
    result = perplexity(model, "--json", *options)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_equal_to_a_direct_computation(model: Path, text: Path) -> None:
    ids = torch.tensor(encode_prompt(load_tokenizer(model), TEXT * 3))[:150]
    loss, count = 0.0, 0
    for chunk in ids.split(64):
        logs = load(model)(chunk.unsqueeze(0))[0, :-1].double().log_softmax(dim=-1)
        loss -= float(logs.gather(1, chunk[1:].unsqueeze(1)).sum())
        count += len(chunk) - 1
    found = figures(model, "--text", text, "--seqlen", "64", "--max-tokens", "150")
    assert (found["tokens"], found["predicted"]) == (150, count)
    assert found["nll"] == pytest.approx(loss / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss / count), rel=1e-5)
    assert found["kl"] is None


def test_divergence_from_itself_and_through_an_int4_cache(model: Path, text: Path) -> None:
    against = ("--text", text, "--against", model)
    assert figures(model, *against)["kl"] == 0
    found = figures(model, *against, "--quant-policy", "4")
    assert found["kl"] > 0 and found["quant_policy"] == 4
    assert found["against_perplexity"] == figures(model, "--text", text)["perplexity"]


def test_text_for_people(model: Path, text: Path) -> None:
    result = perplexity(model, "--text", text, "--against", model)
    assert result.exit_code == 0
    found = figures(model, "--text", text)
    assert found["seqlen"] == 512
    assert f"Perplexity  {found['perplexity']:.4f}" in result.stdout
    assert "KL          0.000000 nats" in result.stdout


def test_a_trained_model_predicts_its_own_kind_of_text(tmp_path: Path) -> None:
    folder, corpus = shared_folder("models/stories260k"), shared_folder("corpora")
    limits = ("--text", corpus / "tinystories.txt", "--max-tokens", "1000")
    dense = figures(folder, *limits)["perplexity"]
    assert dense < 12
    assert figures(folder, *limits, "--quant-policy", "8")["perplexity"] < 1.01 * dense


def test_models_with_other_tokenizers_are_not_compared(
    model: Path, text: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    document = json.loads((other / "tokenizer.json").read_text())
    document["model"]["merges"] = document["model"]["merges"][:20]
    (other / "tokenizer.json").write_text(json.dumps(document))
    result = perplexity(model, "--text", text, "--against", other)
    assert result.exit_code == 1 and "cannot be compared" in result.stderr


def test_a_tokenizer_that_is_larger_than_the_model(model: Path, text: Path, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, vocab_size=300)
    shutil.copy(model / "tokenizer.json", folder)
    result = perplexity(folder, "--text", text)
    assert result.exit_code == 1 and "embeddings" in result.stderr


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (None, [], "No such file"),
        (b"\xff\xfe\x00", [], "not UTF-8"),
        (b"", [], "two to predict one"),
        (b"Some words of a text.", ["--seqlen", "513"], "at most 512"),
        (b"Some words of a text.", ["--device", "tpu"], "device is"),
        (b"Some words of a text.", ["--against", "/missing/model"], "no such folder"),
    ],
)
def test_mistakes_are_one_paragraph(
    model: Path, tmp_path: Path, content: bytes | None, options: list[str], words: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    result = perplexity(model, "--text", path, *options)
    assert result.exit_code == 1 and words in result.stderr
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


def test_usage_errors_and_a_missing_model(tmp_path: Path, text: Path) -> None:
    assert perplexity("x").exit_code == 2
    assert perplexity("x", "--text", text, "--seqlen", "1").exit_code == 2
    assert perplexity(tmp_path / "missing", "--text", text).exit_code == 1
