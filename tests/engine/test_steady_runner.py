"""Bits that do not depend on batching, chunking, prefix reuse or giving way."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from awqkit_runtime.cache.key_frame import PLAIN_FRAME
from awqkit_runtime.engine.request import Completion
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.engine.steady_runner import TileToken, pack_tiles
from awqkit_runtime.models.loader import load_decoder
from tests.engine.fakes import generate, generate_alone, make_engine, random_frame
from tests.tiny_models import write_tiny_model

#: Exact log-probabilities are more than the likeliest tokens would tell.
PARAMS = SamplingParams(max_tokens=14, logprobs=3, temperature=1.0, top_p=0.9, seed=5)


def prompts() -> list[list[int]]:
    """Short ones, ones that soon need a further page, and two with a common beginning."""
    rng = random.Random(11)
    shared = [rng.randrange(3, 300) for _ in range(65)]
    found = [[rng.randrange(3, 300) for _ in range(length)] for length in (56, 62, 120)]
    return found + [[*shared, rng.randrange(3, 300)] for _ in range(2)] + [[7]]


def exact(done: list[Completion]) -> list[tuple[Any, Any]]:
    return [(one.token_ids, one.logprobs) for one in done]


@pytest.mark.parametrize(("family", "policy"), [("llama", 0), ("llama", 4), ("qwen2_moe", 0)])
def test_answers_are_the_same_to_the_last_bit(tmp_path: Path, family: str, policy: int) -> None:
    folder = write_tiny_model(tmp_path, family, seed=2)
    decoder = load_decoder(folder, device="cpu", dtype="float32")
    frame = random_frame(decoder.config) if policy == 4 else PLAIN_FRAME
    alone = make_engine(
        decoder,
        quant_policy=policy,
        enable_prefix_caching=False,
        deterministic=True,
        key_frame=frame,
    )
    expected = exact(generate_alone(alone, prompts(), PARAMS))
    for settings in (
        {"max_batch_size": 16},
        {"pages": 3, "max_batch_size": 3, "max_prefill_tokens": 33},
    ):
        engine = make_engine(
            decoder, quant_policy=policy, deterministic=True, key_frame=frame, **settings
        )
        assert exact(generate(engine, prompts(), PARAMS)) == expected
    assert engine.stats().preemptions > 0 and engine.stats().reused_tokens > 0


def test_tiles_hold_each_token_once_in_its_row_and_in_order() -> None:
    rng = random.Random(4)
    for _ in range(50):
        rows = rng.choice([1, 4, 16])
        sequences = []
        for chunk in range(rng.randrange(1, 9)):
            start, length = rng.randrange(60), rng.choice([1, 1, 1, rng.randrange(1, 40)])
            positions = range(start, start + length)
            sequences.append([TileToken(chunk=chunk, token_id=0, position=at) for at in positions])
        tiles = pack_tiles(sequences, rows)
        for tile in tiles:
            assert all(token.position % rows == row for row, token in tile.items())
        order: dict[int, list[int]] = {}
        for tile in tiles:
            for token in sorted(tile.values(), key=lambda token: token.position):
                order.setdefault(token.chunk, []).append(token.position)
        assert order == {i: [t.position for t in tokens] for i, tokens in enumerate(sequences)}
