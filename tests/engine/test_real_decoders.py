"""Whole small models through the engine: every family's decoder, every cache policy."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit.checkpoint.tokenizer import load_tokenizer
from awqkit_runtime.cache.key_frame import PLAIN_FRAME
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.models.loader import load_decoder
from tests.engine.fakes import generate, generate_alone, make_engine, random_frame
from tests.engine.tokenizers_for_tests import shared_folder
from tests.tiny_models import write_tiny_model

POLICIES = [0, 8, 4, "k8v4"]
FRAMED = "4, in another frame"
PARAMS = SamplingParams(max_tokens=40)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_tiny_model(tmp_path_factory.mktemp("llama"), "llama", seed=3)
    return load_decoder(folder, device="cpu", dtype="float32")


def prompts() -> list[list[int]]:
    """Short ones, long ones and ones with a common beginning."""
    rng = random.Random(5)
    shared = [rng.randrange(3, 300) for _ in range(140)]
    lengths = (40, 50, 60, 150)
    found = [[rng.randrange(3, 300) for _ in range(length)] for length in lengths]
    return found + [[*shared, rng.randrange(3, 300)] for _ in range(3)]


@pytest.mark.parametrize("policy", [*POLICIES, FRAMED])
def test_greedy_answers_do_not_depend_on_the_way(decoder: Any, policy: int | str) -> None:
    frame = PLAIN_FRAME
    if policy == FRAMED:
        policy, frame = 4, random_frame(decoder.config)
    alone = make_engine(decoder, quant_policy=policy, enable_prefix_caching=False, key_frame=frame)
    expected = [done.token_ids for done in generate_alone(alone, prompts(), PARAMS)]
    for settings in (
        {"max_batch_size": 16},
        {"max_batch_size": 2, "max_prefill_tokens": 50},
        {"pages": 5, "max_prefill_tokens": 33},
    ):
        engine = make_engine(decoder, quant_policy=policy, key_frame=frame, **settings)
        assert [done.token_ids for done in generate(engine, prompts(), PARAMS)] == expected
        assert engine.stats().used_pages == 0
    assert engine.stats().preemptions > 0 and engine.stats().reused_tokens > 0


def test_an_unquantized_cache_gives_the_same_tokens_in_any_frame(decoder: Any) -> None:
    plain, framed = (
        generate(make_engine(decoder, key_frame=frame), prompts()[:3], PARAMS)
        for frame in (PLAIN_FRAME, random_frame(decoder.config))
    )
    assert [done.token_ids for done in framed] == [done.token_ids for done in plain]


def test_unquantized_pages_give_the_greedy_tokens_of_the_whole_model(decoder: Any) -> None:
    """Against the model without any cache, one full pass for every token."""
    from awqkit_runtime.models.loader import LanguageModel

    model = LanguageModel(decoder)
    done = generate(make_engine(decoder), prompts()[:3], PARAMS)
    for completion in done:
        ids = list(completion.prompt_token_ids)
        for token in completion.token_ids[:15]:
            assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
            ids.append(token)


@pytest.mark.parametrize("family", ["phi3", "gemma2", "gemma3", "mixtral", "qwen2_moe"])
@pytest.mark.parametrize("policy", [0, 4])
def test_nor_do_those_of_other_families(tmp_path: Path, family: str, policy: int) -> None:
    """Windows shorter than the prompts, soft caps, experts: in chunks and batches as alone."""
    decoder = load_decoder(write_tiny_model(tmp_path, family, seed=4), device="cpu")
    params = SamplingParams(max_tokens=8)
    alone = make_engine(decoder, quant_policy=policy, enable_prefix_caching=False)
    expected = [done.token_ids for done in generate_alone(alone, prompts(), params)]
    engine = make_engine(decoder, quant_policy=policy, max_prefill_tokens=33)
    assert [done.token_ids for done in generate(engine, prompts(), params)] == expected
    assert engine.stats().reused_tokens > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_stories_go_on_exactly_as_published(policy: int | str) -> None:
    folder: Path = shared_folder("models/stories260k")
    expected = json.loads((folder / "expected_greedy.json").read_text())
    tokenizer = load_tokenizer(folder)
    engine = make_engine(
        load_decoder(folder, device="cpu", dtype="float32"),
        tokenizer=tokenizer,
        quant_policy=policy,
    )
    params = SamplingParams(max_tokens=expected["greedy_tokens"])
    done = generate(engine, [[tokenizer.bos_token_id]], params)[0]
    assert len(done.token_ids) == expected["greedy_tokens"]
    if policy == 0:
        assert done.text == expected["text"]
    else:
        assert done.text.startswith("Once upon a time, there was a")
