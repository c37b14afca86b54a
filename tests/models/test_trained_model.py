"""A real trained model of 260,000 parameters, where it lies beside the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.models.loader import load_decoder
from tests.models.paged_generation import generate_greedily

MODELS = Path(__file__).parents[2] / "../shared/models"
BOS = 1


@pytest.fixture(params=["stories260k", "stories260k-g128"])
def folder(request: pytest.FixtureRequest) -> Path:
    path = MODELS / request.param
    if not path.is_dir():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture
def decoder(folder: Path) -> Decoder:
    return load_decoder(folder, device="cpu", dtype="float32")


def expectation(folder: Path) -> tuple[int, str]:
    """How many tokens to generate greedily, and the text that they must be."""
    expected = json.loads((folder / "expected_greedy.json").read_text(encoding="utf-8"))
    assert expected["prompt"] == ""
    return expected["greedy_tokens"], expected["text"]


def decode(folder: Path, ids: list[int]) -> str:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).decode(ids)


def test_greedy_text_is_exactly_the_expected_one(folder: Path, decoder: Decoder) -> None:
    count, text = expectation(folder)
    ids = generate_greedily(decoder, [BOS], count, quant_policy=0)
    assert decode(folder, ids) == text


def test_a_chunked_prompt_continues_as_if_it_had_been_generated(
    folder: Path, decoder: Decoder
) -> None:
    ids = generate_greedily(decoder, [BOS], 150, quant_policy=0)
    again = generate_greedily(decoder, ids[:100], 51, quant_policy=0, chunk=33)
    assert again == ids


@pytest.mark.parametrize("quant_policy", [8, 4, "k8v4"])
def test_quantized_pages_tell_a_story_too(
    folder: Path, decoder: Decoder, quant_policy: int | str
) -> None:
    count, text = expectation(folder)
    story = decode(folder, generate_greedily(decoder, [BOS], count, quant_policy=quant_policy))
    assert story.startswith("Once upon a time, there was a little girl named Lily.")
    if quant_policy == 8:
        assert story[:150] == text[:150]
