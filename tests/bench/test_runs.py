"""Scenarios run, or say why they do not, within their time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import pytest
import torch

from awqkit_runtime.bench import prepared
from awqkit_runtime.bench.prepared import RunningAhead, prepare_work
from awqkit_runtime.bench.runs import (
    Result,
    Skipped,
    Speed,
    measure_speed,
    run_scenarios,
)
from awqkit_runtime.bench.scenarios import Scenario
from awqkit_runtime.bench.subject import Subject
from awqkit_runtime.bench.timing import time_calls
from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.config import QUANT_POLICIES, QuantPolicy
from awqkit_runtime.engine.launched_step import LaunchedStep
from awqkit_runtime.engine.runner import Runner
from awqkit_runtime.engine.scheduler import Chunk
from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.models.loader import load_decoder
from tests.tiny_models import write_tiny_model

FAST = Speed(bandwidth=1e15, multiply_rate=1e15)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_decoder(write_tiny_model(tmp_path_factory.mktemp("model")))


def subject(decoder: Decoder) -> Subject:
    return Subject(decoder=decoder, bits_of=lambda name: None)


def run(
    decoder: Decoder, *scenarios: Scenario, speed: Speed = FAST, seconds: float = 1.0
) -> list[Result | Skipped]:
    return list(
        run_scenarios(subject(decoder), scenarios, speed, seconds=seconds, step_tokens=2048)
    )


@pytest.mark.parametrize("policy", QUANT_POLICIES)
def test_a_call_gives_the_next_token_of_each_sequence(
    decoder: Decoder, policy: QuantPolicy
) -> None:
    scenario = Scenario(name="test", batch=3, new_tokens=2, context=70, quant_policy=policy)
    call = prepare_work(subject(decoder), scenario, 100)
    tokens = [token.token_id for token in call()]
    assert len(tokens) == 3
    assert tokens == [token.token_id for token in call()]


def test_prompts_are_read_in_steps_as_the_engine_does(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    launch = Runner.launch

    def noted(self: Runner, chunks: Sequence[Chunk], previous: LaunchedStep | None) -> LaunchedStep:
        steps.append([(c.request.request_id, c.start, c.length, c.samples) for c in chunks])
        return launch(self, chunks, previous)

    monkeypatch.setattr(Runner, "launch", noted)
    scenario = Scenario(name="test", batch=2, new_tokens=70, context=0)
    at_once = prepare_work(subject(decoder), scenario, 1000)()
    assert steps == [[(0, 0, 70, True), (1, 0, 70, True)]]
    steps.clear()
    split = prepare_work(subject(decoder), scenario, 50)()
    assert steps == [
        [(0, 0, 50, False)],
        [(0, 50, 20, True), (1, 0, 30, False)],
        [(1, 30, 40, True)],
    ]
    assert [token.token_id for token in split] == [token.token_id for token in at_once]


def test_running_ahead_every_step_follows_the_one_in_flight(decoder: Decoder) -> None:
    """Calls give in turn what steps one after the other give, where the tokens go on."""
    scenario = Scenario(name="test", batch=3, new_tokens=1, context=70)
    pool = PagePool(PageFormat.for_policy(decoder.config, 0, decoder.dtype), 6, "cpu")
    runner = subject(decoder).runner(pool, 0, max_rows=3)
    steps = prepared._steps(list(prepared._requests(scenario, 300)), scenario, 100)
    call = RunningAhead(runner, steps)
    assert call() == []
    tokens = [[token.token_id for token in call()] for _ in range(4)]
    for before, after in itertools.pairwise(tokens):
        for chunk, token in zip(steps[0], before, strict=True):
            prompt = chunk.request.prompt_token_ids[:-1]
            chunk.request.prompt_token_ids = (*prompt, token)
        again = runner.launch(steps[0], None).collect()
        assert [token.token_id for token in again] == after


def test_results_are_medians_with_their_limit(decoder: Decoder) -> None:
    (row,) = run(decoder, Scenario(name="test", batch=2, new_tokens=1, context=5))
    assert isinstance(row, Result)
    assert row.calls >= 1 and 0 < row.seconds < 1
    assert row.tokens_per_second == pytest.approx(2 / row.seconds)
    assert (row.limit, row.limited_by) == FAST.limit(row.work)
    assert row.limit == max(row.work.bytes, row.work.operations) / 1e15


def test_what_does_not_fit_is_skipped_with_the_reason(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Scenario(name="fits", batch=1, new_tokens=1, context=5)
    long = Scenario(name="long", batch=1, new_tokens=513, context=0)
    rows = run(decoder, long, step)
    assert isinstance(rows[0], Skipped) and "the model takes 512" in rows[0].reason
    assert isinstance(rows[1], Result)
    (slow,) = run(decoder, step, speed=Speed(bandwidth=1.0, multiply_rate=1.0))
    assert isinstance(slow, Skipped) and "--seconds" in slow.reason
    monkeypatch.setattr("awqkit_runtime.bench.runs.free_memory", lambda device: 1000)
    (large,) = run(decoder, step)
    assert isinstance(large, Skipped) and "1000 B are free" in large.reason


def test_time_is_bounded_and_every_call_counted() -> None:
    calls = []
    start = time.perf_counter()
    times = time_calls(lambda: calls.append(time.sleep(0.02)), torch.device("cpu"), seconds=0.2)
    assert time.perf_counter() - start < 1
    assert len(calls) == len(times) + 1
    assert min(times) >= 0.02
    assert len(time_calls(lambda: time.sleep(0.02), torch.device("cpu"), seconds=0.001)) == 1


def test_the_machine_is_measured(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awqkit_runtime.bench.machine._SECONDS", 0.05)
    speed = measure_speed(decoder)
    assert 1e8 < speed.bandwidth < 1e13
    assert 1e8 < speed.multiply_rate < 1e15
