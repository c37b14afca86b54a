"""Two GPUs of one host share a model through NCCL: the tokens of one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit.checkpoint import open_checkpoint, write_checkpoint
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.loading import load_engine
from awqkit_runtime.engine.request import Completion
from awqkit_runtime.engine.sampling_params import SamplingParams
from tests.checkpoint.folders import quantized_weights
from tests.engine.fakes import generate
from tests.tiny_models import write_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(240),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs"),
]
DEMO = Path(__file__).parents[3] / "examples" / "demo_model" / "model"
#: Between the log-probabilities of the two best tokens; two BF16 sums instead of one move them by
#: less.
CLOSE = 0.1
PARAMS = SamplingParams(max_tokens=24, ignore_eos=True, logprobs=2)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4-bit, with three groups of inner channels and one key-value head for two ranks."""
    path = tmp_path_factory.mktemp("model")
    shape = {"hidden_size": 512, "intermediate_size": 384, "head_dim": 128}
    plain = write_tiny_model(path / "plain", "qwen2", num_key_value_heads=1, **shape)
    source = open_checkpoint(plain)
    write_checkpoint(path / "int4", quantized_weights(source), source=source, format="awq")
    return path / "int4"


@contextmanager
def engine_of(folder: Path, **settings: Any) -> Iterator[Engine]:
    config = EngineConfig(
        device="cuda", cache_max_entry_count="64MiB", session_len=512, max_batch_size=8, **settings
    )
    engine, _ = load_engine(folder, config)
    yield engine
    if config.tp > 1:
        engine._runner._team.close()  # type: ignore[union-attr]


def answers(folder: Path, **settings: Any) -> list[Completion]:
    rng = random.Random(2)
    prompts = [[rng.randrange(3, 300) for _ in range(length)] for length in (4, 30, 100)]
    with engine_of(folder, **settings) as engine:
        return generate(engine, prompts, PARAMS)


def clear_steps(done: Completion) -> int:
    """Steps before the first one whose two best tokens lie close."""
    assert done.logprobs is not None
    for step, found in enumerate(done.logprobs):
        first, second = sorted(found.values(), reverse=True)[:2]
        if first - second <= CLOSE:
            return step
    return len(done.logprobs)


def test_in_float32_the_tokens_are_those_of_one_gpu(uneven: Path) -> None:
    for folder in (uneven, DEMO):
        one, two = (answers(folder, tp=tp, dtype="float32", quant_policy=0) for tp in (1, 2))
        assert [done.token_ids for done in one] == [done.token_ids for done in two]


def test_kernels_give_them_as_far_as_roundings_do_not_decide(uneven: Path) -> None:
    compared = 0
    for folder in (uneven, DEMO):
        one, two = (answers(folder, tp=tp, dtype="bfloat16", quant_policy=8) for tp in (1, 2))
        for alone, shared in zip(one, two, strict=True):
            sure = clear_steps(alone)
            assert alone.token_ids[:sure] == shared.token_ids[:sure]
            compared += sure
    assert compared >= 20
