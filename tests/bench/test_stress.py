"""Storms end well with this engine, and the stress run notices where one does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from awqkit_runtime.bench.stress import Ended, StressReport, different_answers, run_stress
from awqkit_runtime.bench.stress_traffic import Order
from awqkit_runtime.bench.subject import Subject
from awqkit_runtime.bench.waits import Service, longest_waits
from awqkit_runtime.cache.allocator import BlockAllocator
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.request import PRIORITY_STEPS, Completion
from awqkit_runtime.engine.sampling_params import SamplingParams
from tests.engine.fakes import NumberTokenizer, OneLayerDecoder, make_engine


class SubjectAhead(Subject):
    """Its engines run ahead, and so are not deterministic ones."""

    def engine(self, config: EngineConfig) -> Engine:
        config = replace(config, deterministic=False)
        return Engine(self.decoder, NumberTokenizer(), config, run_ahead=True)


def stress(
    count: int,
    *,
    compare: int = 0,
    seed: int = 0,
    session_len: int = 160,
    subjects: type[Subject] = Subject,
) -> StressReport:
    decoder: Any = OneLayerDecoder(session_len=session_len)
    subject = subjects(decoder=decoder, bits_of=lambda name: None)
    return run_stress(subject, count=count, compare=compare, seed=seed)


@pytest.mark.parametrize("subjects", [Subject, SubjectAhead])
def test_a_storm_ends_with_all_promises_kept(subjects: type[Subject]) -> None:
    report = stress(150, compare=20, subjects=subjects)
    assert report.problems == ()
    assert report.preemptions > 0 and 0 < report.aborted < 150 and report.compared == 20
    assert report.pages_not_back == 0 and report.longest_wait <= report.longest_allowed


def test_it_tells_of_each_request_that_ended_or_was_compared() -> None:
    told: list[None] = []
    decoder: Any = OneLayerDecoder(session_len=160)
    subject = Subject(decoder=decoder, bits_of=lambda name: None)
    run_stress(subject, count=20, compare=6, on_request=lambda: told.append(None))
    assert len(told) == 26


@pytest.mark.slow
@pytest.mark.parametrize("subjects", [Subject, SubjectAhead])
@pytest.mark.parametrize("seed", range(3))
def test_long_storms(seed: int, subjects: type[Subject]) -> None:
    report = stress(3000, compare=200, seed=seed, session_len=300, subjects=subjects)
    assert report.problems == () and report.preemptions > 100


def test_pages_that_do_not_come_back_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    release = BlockAllocator.release
    leaked: list[int] = []

    def leak_once(self: BlockAllocator, pages: Sequence[int]) -> None:
        if pages and not leaked:
            leaked.append(pages[0])
            pages = pages[1:]
        release(self, pages)

    monkeypatch.setattr(BlockAllocator, "release", leak_once)
    assert stress(40).problems == ("1 pages did not come back.",)


def ended(tokens: list[int], reason: Any) -> Ended:
    params = SamplingParams(max_tokens=4)
    done = Completion(text="", token_ids=tokens, finish_reason=reason, prompt_token_ids=[1, 2])
    order = Order(prompt=(1, 2), params=params, abort_after=None)
    return Ended(order=order, completion=done, arrived=0, ended=1)


def test_answers_that_depend_on_the_traffic_are_noticed() -> None:
    engine = make_engine(OneLayerDecoder())
    engine.add_request([1, 2], SamplingParams(max_tokens=4))
    outputs = [output for _ in range(4) for output in engine.step()]
    tokens = [token for output in outputs for token in output.token_ids]
    other = [*tokens[:-1], tokens[-1] ^ 1]
    same = [ended(tokens, "length"), ended(tokens[:2], "abort"), ended([], "abort")]
    assert list(different_answers(engine, same)) == []
    (wrong,) = different_answers(engine, [ended(other, "length")])
    assert str(other) in wrong and str(tokens) in wrong
    reasons = list(different_answers(engine, [ended(tokens, "stop")]))
    assert reasons == ["An answer ended by stop, alone by length."]


def test_what_a_request_may_wait_is_what_goes_before_it() -> None:
    def service(arrived: int, ended: int, tokens: int, priority: int = 0) -> Service:
        return Service(arrived=arrived, ended=ended, tokens=tokens, priority=priority)

    over = service(0, 4, 5)
    first, second = service(5, 9, 10), service(6, 30, 20)
    assert longest_waits([over, first, second]) == [(4, 6), (4, 11), (24, 31)]
    # The urgent one goes before both, and each of them may have to begin anew.
    urgent = service(7, 12, 3, priority=1)
    assert longest_waits([first, second, urgent])[1] == (24, 1 + 2 * 10 + 2 * 20 + 3)
    # Who comes too late does not overtake.
    late = service(7 + PRIORITY_STEPS, 200, 3, priority=1)
    assert longest_waits([service(6, 150, 20), late])[0] == (144, 21)
    assert longest_waits([]) == []
