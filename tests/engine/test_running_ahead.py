"""Launching a step before the one in front of it is collected changes no answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.errors import NumericsError
from awqkit_runtime.models.loader import load_decoder
from tests.engine.fakes import VOCAB, generate, make_engine
from tests.engine.late_device import LateDevice, LateStep
from tests.engine.random_traffic import Drive, Mishap, draw_orders
from tests.tiny_models import write_tiny_model

LONGEST = 150


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices of this size are faster so, and several tests may run at once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def engine_on(trouble: Any = None, **options: Any) -> tuple[Engine, LateDevice]:
    new_runner = LateDevice if trouble is None else partial(LateDevice, trouble=trouble)
    engine = make_engine(new_runner=new_runner, **options)
    device: Any = engine._runner
    return engine, device


def random_settings(rng: random.Random) -> dict[str, Any]:
    return {
        "pages": rng.choice((5, 6, 7, 100)),
        "max_batch_size": rng.choice((2, 5, 16)),
        "max_prefill_tokens": rng.choice((3, 40, 300)),
        "enable_prefix_caching": rng.random() < 0.8,
    }


def test_the_next_step_is_launched_before_this_one_is_collected() -> None:
    places: list[str] = []
    engine, _ = engine_on(places.append, run_ahead=True)
    engine.add_request([1, 2, 3], SamplingParams(max_tokens=3))
    seen = []
    while engine.has_unfinished():
        (output,) = engine.step()
        seen.append(places.copy())
        places.clear()
        assert len(output.token_ids) == 1
    launch = ["launch", "launched"]
    assert seen == [[*launch, *launch, "collect"], [*launch, "collect"], ["collect"]]


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_penalties_wait_for_the_tokens_that_they_are_taken_for(penalty: float) -> None:
    params = SamplingParams(max_tokens=20, presence_penalty=penalty)
    engine, device = engine_on(run_ahead=True)
    ahead = generate(engine, [[1, 2, 3]], params)
    plain, _ = engine_on(run_ahead=False)
    assert ahead == generate(plain, [[1, 2, 3]], params)
    assert device.followers == (0 if penalty else 19)


@pytest.mark.parametrize(
    "options",
    [{"run_ahead": False}, {"run_ahead": None}, {"run_ahead": True, "deterministic": True}],
    ids=str,
)
def test_running_ahead_is_off_where_it_is_not_wanted_or_cannot_be(options: dict[str, Any]) -> None:
    engine = make_engine(**options)
    engine.add_request([1, 2, 3], SamplingParams(max_tokens=5))
    engine.step()
    assert engine._steps._in_flight is None


class Overflowing(LateDevice):
    """Its numbers overflow where it reads the ninth token of request 0."""

    def catch_up(self, last: LateStep) -> None:
        super().catch_up(last)
        if any(row.request_id == 0 and row.end > 8 for row in last.rows):
            raise NumericsError("not finite")


def test_numbers_that_overflow_behind_an_answers_end_harm_nobody() -> None:
    prompts = [[1, 2, 3], [4, 5]]
    long = SamplingParams(max_tokens=20)
    answer = generate(engine_on()[0], prompts, long)[0].token_ids
    assert answer[5] not in answer[:5]
    ends = [replace(long, stop_token_ids=[answer[5]]), long]
    expected = generate(engine_on()[0], prompts, ends)
    engine = make_engine(new_runner=Overflowing, run_ahead=True)
    assert generate(engine, prompts, ends) == expected
    with pytest.raises(NumericsError):
        generate(make_engine(new_runner=Overflowing, run_ahead=True), prompts, long)


def test_an_abort_in_flight_leaves_nothing_to_wait_for() -> None:
    places: list[str] = []
    engine, _ = engine_on(places.append, run_ahead=True)
    number = engine.add_request([1, 2, 3], SamplingParams(max_tokens=30))
    for _ in range(4):
        engine.step()
    places.clear()
    done = engine.abort(number)
    assert done is not None and len(done.token_ids) == 4
    assert not engine.has_unfinished() and engine.stats().used_pages == 0
    assert engine.step() == [] and places == []
    later = engine.add_request([4, 5], SamplingParams(max_tokens=30))
    assert [output.request_id for output in engine.step()] == [later]


def same_answers(seed: int, *, count: int, mishaps: float = 0.0) -> tuple[Drive, Drive]:
    """Of an engine that runs ahead of a late device, troubled now and then, and of a plain one."""
    rng = random.Random(seed)
    limits = random_settings(rng)
    orders = draw_orders(rng, count=count, longest=LONGEST)

    def trouble(place: str) -> None:
        if rng.random() < mishaps:
            error = NumericsError("not finite") if place == "collect" else Mishap(place)
            raise rng.choice((error, KeyboardInterrupt()))

    plain = Drive(engine_on(run_ahead=False, **limits)[0], orders).run()
    ahead = Drive(engine_on(trouble, run_ahead=True, **limits)[0], orders).run()
    assert plain.done.keys() == ahead.done.keys()
    for name, expected in plain.done.items():
        found = ahead.done[name]
        if orders[name[0]].abort_steps is not None:
            common = min(len(found.token_ids), len(expected.token_ids))
            assert found.token_ids[:common] == expected.token_ids[:common]
        else:
            assert found == expected
            if not mishaps:
                assert ahead.texts[name] == plain.texts[name]
    return plain, ahead


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_answers_are_those_of_an_engine_that_does_not_run_ahead(seed: int) -> None:
    same_answers(seed, count=12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_steps_that_fail_anywhere_change_no_answer(seed: int) -> None:
    same_answers(seed, count=12, mishaps=0.1)


def test_the_traffic_brings_what_it_is_meant_to() -> None:
    preemptions = reused = mishaps = 0
    reasons: set[str] = set()
    for seed in range(20):
        _, ahead = same_answers(seed, count=12, mishaps=0.05)
        stats = ahead.engine.stats()
        preemptions += stats.preemptions
        reused += stats.reused_tokens
        mishaps += ahead.mishaps
        reasons |= {completion.finish_reason for completion in ahead.done.values()}
    assert preemptions > 10 and reused > 500 and mishaps > 10, (preemptions, reused, mishaps)
    assert reasons == {"stop", "length", "abort"}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("policy", [0, 8])
def test_a_real_decoder_answers_the_same(device: str, policy: int, tmp_path: Path) -> None:
    decoder = load_decoder(write_tiny_model(tmp_path / "llama"), device=device, dtype="float32")
    rng = random.Random(3)
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.randint(30, 60))] for _ in range(5)]
    params = SamplingParams(max_tokens=70)
    limits = {"pages": 5, "max_prefill_tokens": 64, "quant_policy": policy}
    plain = generate(make_engine(decoder, run_ahead=False, **limits), prompts, params)
    # One of them ends with a token that the engine cannot foresee.
    stops = [*[params] * 4, replace(params, stop_token_ids=[plain[4].token_ids[20]])]
    expected = generate(make_engine(decoder, run_ahead=False, **limits), prompts, stops)
    engine = make_engine(decoder, run_ahead=True, **limits)
    assert generate(engine, prompts, stops) == expected
    assert engine.stats().preemptions > 0 and engine.stats().used_pages == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_long_traffic(seed: int) -> None:
    same_answers(seed, count=300, mishaps=0.02 * (seed % 2))
