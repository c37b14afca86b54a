"""Ctrl-C at any moment leaves an engine that works."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from awqkit_runtime.engine.dispatcher import Dispatcher
from awqkit_runtime.engine.sampling_params import SamplingParams
from tests.engine.fakes import VOCAB, make_engine

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers")


@pytest.fixture
def _alarms_interrupt() -> Iterator[None]:
    def interrupt(*details: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    torch.set_num_threads(threads)


def storm(seed: int, *, rounds: int, run_ahead: bool) -> None:
    rng = random.Random(seed)
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.randrange(1, 150))] for _ in range(6)]
    params = [SamplingParams(max_tokens=40)] * len(prompts)
    expected = Dispatcher(make_engine()).complete(prompts, params)
    engine = make_engine(pages=8, max_prefill_tokens=50, run_ahead=run_ahead)
    requests, interrupted = Dispatcher(engine), 0
    for _ in range(rounds):
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0005, 0.1))
        try:
            done = requests.complete(prompts, params)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert done == expected
        except KeyboardInterrupt:
            interrupted += 1
        # An interrupt of the cleaning up itself may leave requests, which only need more steps.
        while engine.has_unfinished():
            engine.step()
        assert engine.stats().used_pages == 0
    assert interrupted > rounds / 10
    assert requests.complete(prompts, params) == expected


@pytest.mark.usefixtures("_alarms_interrupt")
@pytest.mark.parametrize("run_ahead", [False, True])
def test_a_few_interrupts(run_ahead: bool) -> None:
    storm(1, rounds=10, run_ahead=run_ahead)


@pytest.mark.slow
@pytest.mark.usefixtures("_alarms_interrupt")
@pytest.mark.parametrize("run_ahead", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_many_interrupts(seed: int, run_ahead: bool) -> None:
    storm(seed, rounds=300, run_ahead=run_ahead)
