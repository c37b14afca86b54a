"""Answers do not depend on how they were computed; what goes wrong leaves nothing behind."""

from __future__ import annotations

import functools
import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from awqkit_runtime.cache.paged_attention import PagedAttention
from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.errors import NumericsError, OutOfMemoryError, RequestError
from tests.engine.fakes import (
    VOCAB,
    OneLayerDecoder,
    generate,
    generate_alone,
    make_engine,
    run_all,
)

POLICIES = [0, 8, 4, "k8v4"]


def random_prompts(seed: int, *, count: int, longest: int, shared: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    prefix = [rng.randrange(VOCAB) for _ in range(shared)]
    return [
        prefix + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, longest))]
        for _ in range(count)
    ]


def answers(completions: list[Any]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


#: Short ones that outgrow a small cache together, long ones, and ones with a common beginning.
PROMPTS = random_prompts(2, count=4, longest=20) + random_prompts(1, count=2, longest=200)
PROMPTS += random_prompts(3, count=3, longest=60, shared=130)


@functools.cache
def computed_plainly(policy: int | str) -> list[list[int]]:
    """Answers to PROMPTS one by one, without any reuse."""
    engine = make_engine(quant_policy=policy, enable_prefix_caching=False)
    return answers(generate_alone(engine, PROMPTS, SamplingParams(max_tokens=80)))


@pytest.mark.parametrize(
    ("policy", "settings"),
    [
        *((policy, {"max_batch_size": 16}) for policy in POLICIES),
        *((policy, {"pages": 7, "max_prefill_tokens": 33}) for policy in POLICIES),
        (0, {"max_batch_size": 3}),
        (4, {"max_prefill_tokens": 7}),
        (8, {"max_prefill_tokens": 1}),
        (0, {"enable_prefix_caching": False}),
        (8, {"max_batch_size": 16, "run_ahead": True}),
        (0, {"pages": 7, "max_prefill_tokens": 33, "run_ahead": True}),
    ],
    ids=str,
)
def test_however_it_is_computed_the_answer_is_the_same(
    policy: int | str, settings: dict[str, Any]
) -> None:
    expected = computed_plainly(policy)
    engine = make_engine(quant_policy=policy, **settings)
    assert answers(generate(engine, PROMPTS, SamplingParams(max_tokens=80))) == expected
    stats = engine.stats()
    assert (stats.preemptions > 0) == ("pages" in settings)
    assert stats.running == stats.waiting == stats.used_pages == 0
    assert len({tuple(answer) for answer in expected}) == len(PROMPTS)


def test_prefixes_are_reused_within_and_after_a_batch() -> None:
    prompts = random_prompts(3, count=4, longest=20, shared=200)
    params = SamplingParams(max_tokens=5)
    engine = make_engine(max_prefill_tokens=256)
    expected = answers(generate(engine, prompts, params))
    before = engine.stats()
    assert answers(generate(engine, prompts, params)) == expected
    after = engine.stats()
    assert after.reused_tokens - before.reused_tokens >= 4 * 192
    assert after.admitted_tokens - before.admitted_tokens == sum(map(len, prompts))


def test_a_step_computes_no_more_tokens_than_allowed_and_decodes_along() -> None:
    decoder = OneLayerDecoder()
    engine = make_engine(decoder, max_prefill_tokens=20)
    engine.add_request([1, 2, 3], SamplingParams(max_tokens=30))
    engine.step()
    engine.add_request(list(range(70)), SamplingParams(max_tokens=2))
    seen = [{output.request_id for output in engine.step()} for _ in range(4)]
    assert max(decoder.steps) == 20
    assert seen == [{0}, {0}, {0}, {0, 1}]


@pytest.mark.parametrize(
    "settings", [{}, {"pages": 8}, {"max_prefill_tokens": 5}, {"run_ahead": True}], ids=str
)
def test_seeded_answers_are_the_same_alone_batched_and_preempted(settings: dict[str, Any]) -> None:
    prompts = random_prompts(4, count=6, longest=100)
    params = SamplingParams(temperature=1.5, top_p=0.95, top_k=50, seed=7, max_tokens=80)
    expected = answers(generate_alone(make_engine(), prompts, params))
    assert answers(generate(make_engine(**settings), prompts, params)) == expected
    other = SamplingParams(temperature=1.5, top_p=0.95, top_k=50, seed=8, max_tokens=80)
    assert answers(generate(make_engine(), prompts, other)) != expected


def test_the_engine_seed_makes_unseeded_requests_repeatable_but_different() -> None:
    params = SamplingParams(temperature=2.0, max_tokens=20)
    first, second = (answers(generate(make_engine(seed=3), [[5]] * 3, params)) for _ in range(2))
    assert first == second and len({tuple(answer) for answer in first}) == 3
    assert answers(generate(make_engine(seed=4), [[5]] * 3, params)) != first


def test_pieces_and_tokens_of_the_steps_make_up_the_completion() -> None:
    engine = make_engine()
    params = SamplingParams(max_tokens=12, logprobs=2)
    number = engine.add_request([3, 1, 4], params)
    outputs = run_all(engine)
    completion = outputs[-1].completion
    assert completion is not None and all(output.completion is None for output in outputs[:-1])
    assert {output.request_id for output in outputs} == {number}
    assert "".join(output.text for output in outputs) == completion.text
    assert [t for output in outputs for t in output.token_ids] == completion.token_ids
    assert completion.prompt_token_ids == [3, 1, 4] and completion.finish_reason == "length"
    assert completion.logprobs is not None
    for token, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        assert len(entry) == 2 and max(entry, key=entry.__getitem__) == token


def greedy_answer(length: int = 40) -> list[int]:
    """Of the prompt [3, 1, 4], without any stop."""
    return generate(make_engine(), [[3, 1, 4]], SamplingParams(max_tokens=length))[0].token_ids


def first_single(answer: list[int], *, after: int) -> int:
    """A place behind `after` whose token is not in the answer before it."""
    return next(i for i in range(after, len(answer)) if answer[i] not in answer[:i])


def test_the_models_stop_token_ends_an_answer_and_is_not_in_the_text() -> None:
    answer = greedy_answer()
    end = first_single(answer, after=5)
    engine = make_engine(stop_token_ids=[answer[end]])
    done = generate(engine, [[3, 1, 4]], SamplingParams())[0]
    assert done.finish_reason == "stop" and done.token_ids == answer[: end + 1]
    assert done.text == "".join(f"{token} " for token in answer[:end])
    ignoring = SamplingParams(ignore_eos=True, max_tokens=40)
    assert generate(engine, [[3, 1, 4]], ignoring)[0].token_ids == answer


def test_own_stop_tokens_end_an_answer_even_when_the_models_are_ignored() -> None:
    answer = greedy_answer()
    end = first_single(answer, after=5)
    params = SamplingParams(stop_token_ids=[answer[end]], ignore_eos=True)
    done = generate(make_engine(), [[3, 1, 4]], params)[0]
    assert done.finish_reason == "stop" and done.token_ids == answer[: end + 1]


def test_min_tokens_puts_the_end_off() -> None:
    answer = greedy_answer()
    params = SamplingParams(stop_token_ids=[answer[2]], min_tokens=10, max_tokens=30)
    done = generate(make_engine(), [[3, 1, 4]], params)[0]
    assert len(done.token_ids) >= 10 and answer[2] not in done.token_ids[:10]


def test_stop_texts_span_tokens_and_are_cut_from_the_text() -> None:
    answer = greedy_answer()
    end = first_single(answer, after=6)
    stop = f"{answer[end - 1]} {answer[end]}"
    done = generate(make_engine(), [[3, 1, 4]], SamplingParams(stop=[stop, "x"]))[0]
    assert done.finish_reason == "stop"
    assert done.text == "".join(f"{token} " for token in answer[: end - 1])
    assert done.token_ids[: end + 1] == answer[: end + 1]


def test_session_length_ends_an_answer() -> None:
    engine = make_engine(OneLayerDecoder(session_len=70))
    done = generate(engine, [[1] * 60], SamplingParams(max_tokens=None))[0]
    assert len(done.token_ids) == 10 and done.finish_reason == "length"
    assert len(generate(engine, [[1] * 69], SamplingParams())[0].token_ids) == 1


def test_what_can_never_be_served_is_refused_at_once() -> None:
    engine = make_engine(OneLayerDecoder(session_len=70))
    for prompt, params, text in [
        ([], {}, "empty"),
        ([1] * 70, {}, "session length, 70"),
        ([VOCAB], {}, f"prompt: {VOCAB} is not a token id"),
        ([True], {}, "prompt: True is not a token id"),
        ([-1], {}, "from 0 to"),
        (["a"], {}, "not a token id"),
        ([1], {"stop_token_ids": [VOCAB]}, "stop_token_ids"),
        ([1], {"logit_bias": {VOCAB: 1.0}}, "logit_bias"),
    ]:
        with pytest.raises(RequestError, match=text):
            engine.add_request(prompt, SamplingParams(**params))
    assert not engine.has_unfinished()


def test_abort_frees_pages_at_any_stage() -> None:
    engine = make_engine(max_batch_size=2, max_prefill_tokens=50)
    numbers = [engine.add_request([n] * 90, SamplingParams(max_tokens=50)) for n in range(4)]
    for _ in range(6):
        engine.step()
    assert engine.stats().running == 2 and engine.stats().waiting == 2
    done = engine.abort(numbers[0])
    assert done is not None and done.finish_reason == "abort" and done.token_ids
    assert done.text == "".join(f"{token} " for token in done.token_ids)
    waiting = engine.abort(numbers[3])
    assert waiting is not None and waiting.token_ids == []
    assert engine.abort(numbers[0]) is None and engine.abort(1234) is None
    finished = [output.request_id for output in run_all(engine) if output.completion]
    assert sorted(finished) == numbers[1:3]
    assert engine.stats().used_pages == 0


class Interrupting(OneLayerDecoder):
    """Fails in the third step, as Ctrl-C or a broken machine would."""

    error: BaseException = KeyboardInterrupt()

    def hidden(self, token_ids: Tensor, positions: Tensor, state: PagedAttention) -> Tensor:
        result = super().hidden(token_ids, positions, state)
        if len(self.steps) == 3:
            raise self.error
        return result


@pytest.mark.parametrize("run_ahead", [False, True])
def test_an_interrupted_step_can_be_repeated(run_ahead: bool) -> None:
    prompts = random_prompts(5, count=3, longest=90)
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=20)
    expected = answers(generate(make_engine(), prompts, params))
    engine = make_engine(Interrupting(), run_ahead=run_ahead)
    for prompt in prompts:
        engine.add_request(prompt, params)
    outputs = engine.step() + ([] if run_ahead else engine.step())
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    outputs += run_all(engine)
    done = [output.completion for output in outputs if output.completion]
    assert sorted(answers(done)) == sorted(expected)
    assert engine.stats().used_pages == 0


@pytest.mark.parametrize("run_ahead", [False, True])
@pytest.mark.parametrize("place", ["schedule", "advance"])
def test_a_step_interrupted_between_its_records_loses_no_page(
    place: str, run_ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are taken or tokens counted, but what belongs to it has not happened yet."""
    prompts = random_prompts(6, count=3, longest=150)
    params = SamplingParams(max_tokens=70)
    expected = answers(generate(make_engine(), prompts, params))
    engine = make_engine(run_ahead=run_ahead)
    numbers = [engine.add_request(prompt, params) for prompt in prompts]
    outputs = engine.step()
    scheduler = engine._scheduler

    def broken(*args: Any) -> None:
        original(*args)
        scheduler.allocator.allocate(1)
        raise KeyboardInterrupt

    original = getattr(scheduler, place)
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, place, broken)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    outputs += run_all(engine)
    done = {output.request_id: output.completion for output in outputs if output.completion}
    assert answers([done[number] for number in numbers]) == expected
    assert engine.stats().used_pages == 0


def test_numbers_that_overflow_are_an_error_that_says_so() -> None:
    decoder = OneLayerDecoder()
    decoder.weights["head"][0, 5] = float("nan")
    engine = make_engine(decoder)
    number = engine.add_request([1, 2], SamplingParams())
    with pytest.raises(NumericsError, match=r"not finite in torch\.float32"):
        engine.step()
    engine.abort(number)
    assert engine.stats().used_pages == 0 and engine.step() == []


def test_a_cache_too_small_for_one_session_is_refused_with_the_ways_out() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        make_engine(OneLayerDecoder(session_len=5000), cache_max_entry_count="512KiB")
    for option in ("session_len", "quant_policy", "cache_max_entry_count", "2048"):
        assert option in str(caught.value)


def test_on_cpu_the_cache_is_no_larger_than_full_sessions_need() -> None:
    engine = make_engine(OneLayerDecoder(session_len=130), max_batch_size=5)
    assert engine.stats().total_pages == 5 * 3


@pytest.mark.parametrize("run_ahead", [False, True])
def test_a_storm_of_requests_and_aborts_ends_with_an_empty_cache(run_ahead: bool) -> None:
    rng = random.Random(9)
    engine = make_engine(pages=7, max_batch_size=8, max_prefill_tokens=40, run_ahead=run_ahead)
    pool = random_prompts(10, count=3, longest=30)
    pool += random_prompts(11, count=3, longest=60, shared=70)
    longest = answers(generate_alone(make_engine(), pool, SamplingParams(max_tokens=150)))
    expected: dict[int, list[int]] = {}
    live: list[int] = []
    reasons: Counter[str] = Counter()
    for step in range(1000):
        if step < 200 and rng.random() < 0.2:
            which, length = rng.randrange(len(pool)), rng.randrange(1, 150)
            number = engine.add_request(pool[which], SamplingParams(max_tokens=length))
            expected[number] = longest[which][:length]
            live.append(number)
        if live and rng.random() < 0.02:
            engine.abort(live.pop(rng.randrange(len(live))))
            reasons["abort"] += 1
        for output in engine.step():
            if output.completion:
                assert output.completion.token_ids == expected[output.request_id]
                live.remove(output.request_id)
                reasons[output.completion.finish_reason] += 1
    assert reasons["length"] > 5 and reasons["abort"] > 1 and engine.stats().preemptions > 0
    assert not engine.has_unfinished() and engine.stats().used_pages == 0


def test_steps_without_requests_do_nothing() -> None:
    engine: Engine = make_engine()
    assert engine.step() == [] and not engine.has_unfinished()


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Matrices of this size are faster so, and several tests may run at once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
