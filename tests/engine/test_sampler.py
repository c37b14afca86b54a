"""The sampler against naive loops, and its promises about seeds and batches."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from awqkit_runtime.engine.logit_adjustments import adjust_logits
from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.sampler import sample
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.engine.uniform import uniform_number

VOCAB = 50


def request(
    *,
    prompt: tuple[int, ...] = (1,),
    output: tuple[int, ...] = (),
    seed: int = 0,
    stops: tuple[int, ...] = (),
    **params: Any,
) -> Request:
    return Request(
        request_id=0,
        prompt_token_ids=prompt,
        params=SamplingParams(**params),
        seed=seed,
        stop_token_ids=frozenset(stops),
        max_output=100,
        output_token_ids=list(output),
    )


def random_logits(seed: int, *, rows: int = 1, vocab: int = VOCAB, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def tokens(logits: Tensor, requests: list[Request]) -> list[int]:
    return [chosen.token_id for chosen in sample(logits, requests)]


def possible(logits: Tensor, draws: int = 400, **params: Any) -> set[int]:
    """Tokens that sampling ever gives."""
    rows = [request(seed=seed, **params) for seed in range(draws)]
    return set(tokens(logits.expand(draws, -1), rows))


def naive_survivors(
    logits: list[float], *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0
) -> set[int]:
    """Tokens left by temperature → top-k → top-p → min-p, one token at a time."""
    weight = {token: math.exp(value / temperature) for token, value in enumerate(logits)}
    ranked = sorted(weight, key=lambda token: -weight[token])[: top_k or None]
    total = sum(weight[token] for token in ranked)
    kept, reached = set(), 0.0
    for token in ranked:
        if reached >= top_p:
            break
        kept.add(token)
        reached += weight[token] / total
    return {token for token in kept if weight[token] >= min_p * weight[ranked[0]]}


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = random_logits(0, rows=3)
    logits[1, [4, 9]] = 100.0
    chosen = tokens(logits, [request() for _ in range(3)])
    assert chosen == [int(logits[0].argmax()), 4, int(logits[2].argmax())]


def test_logits_are_not_modified() -> None:
    logits = random_logits(1)
    before = logits.clone()
    sample(logits, [request(repetition_penalty=2.0, temperature=1.0, top_k=3, logit_bias={3: 9})])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("seed", range(4))
def test_penalties_and_bias_equal_a_naive_loop(seed: int) -> None:
    rng = random.Random(seed)
    logits = random_logits(seed, rows=3)
    requests = [
        request(
            prompt=tuple(rng.choices(range(VOCAB), k=8)),
            output=tuple(rng.choices(range(VOCAB), k=row * 7)),
            repetition_penalty=rng.uniform(0.5, 2),
            presence_penalty=rng.uniform(-2, 2),
            frequency_penalty=rng.uniform(-2, 2),
            logit_bias={rng.randrange(VOCAB): rng.uniform(-5, 5)},
        )
        for row in range(3)
    ]
    expected = logits.clone()
    for row, one in enumerate(requests):
        counts = Counter(one.output_token_ids)
        for token in range(VOCAB):
            value = float(logits[row, token])
            if token in one.prompt_token_ids or token in counts:
                penalty = one.params.repetition_penalty
                value = value / penalty if value > 0 else value * penalty
            if token in counts:
                value -= one.params.presence_penalty
                value -= one.params.frequency_penalty * counts[token]
            expected[row, token] = value + one.params.logit_bias.get(token, 0.0)
    torch.testing.assert_close(adjust_logits(logits, requests), expected)


def test_penalties_touch_only_the_rows_that_ask_for_them() -> None:
    logits = random_logits(2, rows=2)
    requests = [request(), request(prompt=(1, 2), repetition_penalty=1.5)]
    adjusted = adjust_logits(logits, requests)
    assert torch.equal(adjusted[0], logits[0]) and not torch.equal(adjusted[1], logits[1])


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 6, "top_p": 0.5},
        {"top_k": 5, "top_p": 0.9, "min_p": 0.15},
        {"top_k": 1},
        {"top_p": 1e-9},
        {"min_p": 1.0},
    ],
)
@pytest.mark.parametrize("temperature", [0.7, 1.6])
def test_filters_leave_exactly_the_naive_survivors(
    filters: dict[str, Any], temperature: float
) -> None:
    logits = random_logits(3, vocab=12, spread=1.0)
    survivors = naive_survivors(logits[0].tolist(), temperature=temperature, **filters)
    assert possible(logits, temperature=temperature, **filters) == survivors


def test_filters_of_one_row_do_not_reach_another() -> None:
    logits = random_logits(4, vocab=12, spread=1.0).expand(2, -1)
    seen = {0: set(), 1: set()}
    for seed in range(300):
        pair = [request(seed=seed, temperature=2.0), request(seed=seed, temperature=2.0, top_k=2)]
        for row, token in enumerate(tokens(logits, pair)):
            seen[row].add(token)
    assert len(seen[1]) == 2 and len(seen[0]) > 6


def test_tokens_come_as_often_as_their_probability_says() -> None:
    draws, temperature = 20_000, 0.8
    logits = random_logits(5, vocab=8, spread=1.0)
    rows = [request(seed=seed, temperature=temperature) for seed in range(draws)]
    counts = Counter(tokens(logits.expand(draws, -1), rows))
    for token, share in enumerate((logits[0] / temperature).softmax(-1).tolist()):
        assert abs(counts[token] / draws - share) < 4.5 * math.sqrt(share / draws) + 1e-4


def test_a_draw_is_the_same_alone_in_a_batch_and_a_second_time() -> None:
    logits = random_logits(6, rows=7, vocab=2000)
    requests = [
        request(
            seed=row,
            output=(1,) * row,
            temperature=0.5 + row / 4,
            top_k=(0, 40)[row % 2],
            top_p=(1.0, 0.9, 0.5)[row % 3],
        )
        for row in range(7)
    ]
    together = tokens(logits, requests)
    assert together == [tokens(logits[row : row + 1], [requests[row]])[0] for row in range(7)]
    order = [3, 0, 6, 2]
    assert [together[row] for row in order] == tokens(logits[order], [requests[r] for r in order])


def test_positions_and_seeds_give_unrelated_numbers() -> None:
    numbers = [uniform_number(seed, position) for seed in range(40) for position in range(40)]
    assert len(set(numbers)) == 1600 and min(numbers) >= 0 and max(numbers) < 1
    assert abs(sum(numbers) / 1600 - 0.5) < 0.03
    assert uniform_number(-5, 3) == uniform_number(-5, 3) != uniform_number(5, 3)
    assert uniform_number(2**70 + 1, 0) == uniform_number(1, 0)


def test_stop_tokens_are_ruled_out_below_min_tokens() -> None:
    logits = random_logits(7)
    best = int(logits.argmax())
    second = int(logits[0].topk(2).indices[1])
    below = request(output=(5,), stops=(best,), min_tokens=2)
    enough = request(output=(5, 6), stops=(best,), min_tokens=2)
    assert tokens(logits.expand(2, -1), [below, enough]) == [second, best]


def test_where_every_token_is_a_stop_token_the_likeliest_still_is() -> None:
    logits = random_logits(7)
    all_stop = {"stops": tuple(range(VOCAB)), "min_tokens": 5}
    assert tokens(logits, [request(**all_stop)]) == [int(logits.argmax())]
    few = naive_survivors(logits[0].tolist(), temperature=1.0, top_k=3)
    assert possible(logits, **all_stop, temperature=1.0, top_k=3) == few


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-4, 1e4])
def test_hopeless_rows_still_give_a_token(temperature: float) -> None:
    everything = tuple(range(VOCAB))
    masked = request(stops=everything, min_tokens=5, temperature=temperature, top_p=0.5, top_k=4)
    flat = request(temperature=temperature, min_p=1.0)
    logits = torch.cat((random_logits(8), torch.zeros(1, VOCAB), torch.full((1, VOCAB), -math.inf)))
    logits[0, 3] = 1e30
    for seed in range(20):
        masked.seed = flat.seed = seed
        assert all(0 <= token < VOCAB for token in tokens(logits, [masked, flat, flat]))


def test_extreme_logits_draw_the_only_likely_token() -> None:
    logits = torch.full((1, VOCAB), -1e30)
    logits[0, 17] = 1e30
    assert possible(logits, draws=50, temperature=1.0, top_p=0.9) == {17}


@pytest.mark.parametrize(
    "params",
    [
        {"top_p": 5e-324},
        {"top_p": 1e-46, "top_k": 3},
        {"min_p": 5e-324},
        {"min_p": 1.0},
        {"repetition_penalty": 5e-324},
        {"repetition_penalty": 1e308},
        {"temperature": 1e300},
        {"temperature": 1e-300},
        {"presence_penalty": 5e-324, "frequency_penalty": -5e-324},
    ],
)
def test_the_smallest_and_largest_settings_give_a_token(params: dict[str, float]) -> None:
    logits = random_logits(5)
    one = request(**{"temperature": 1.0, "output": (2, 3), **params})
    (token,) = tokens(logits, [one])
    assert 0 <= token < VOCAB
    if {"top_p", "min_p"} & params.keys() and params.get("min_p") != 5e-324:
        assert token == int(logits.argmax())


def test_however_hot_a_draw_is_tokens_that_are_ruled_out_stay_out() -> None:
    logits = random_logits(6)
    hot = [request(temperature=1e39, min_tokens=1, stops=(7,), seed=seed) for seed in range(200)]
    found = {token for one in hot for token in tokens(logits, [one])}
    assert len(found) > VOCAB / 2 and 7 not in found


def test_a_draw_never_gives_a_token_of_no_probability() -> None:
    """Even the largest random number lies below the last possible token's end."""
    logits = torch.full((1, VOCAB), -math.inf)
    logits[0, :3] = torch.tensor([0.0, 1.0, 2.0])
    assert possible(logits, draws=3000, temperature=1.0) == {0, 1, 2}


def test_logprobs_are_those_of_the_model_itself() -> None:
    logits = random_logits(9)
    reference = logits[0].log_softmax(-1)
    one = request(logprobs=3, temperature=5.0, repetition_penalty=3.0, top_k=40, seed=1)
    chosen = sample(logits, [one])[0]
    assert chosen.logprobs is not None
    best = reference.topk(3)
    expected = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    expected.setdefault(chosen.token_id, float(reference[chosen.token_id]))
    assert chosen.logprobs == pytest.approx(expected)
    assert list(chosen.logprobs)[:3] == best.indices.tolist()


def test_no_logprobs_unless_asked_and_only_the_chosen_one_for_zero() -> None:
    logits = random_logits(10, rows=2)
    none, zero = sample(logits, [request(), request(logprobs=0)])
    assert none.logprobs is None
    assert zero.logprobs is not None and list(zero.logprobs) == [zero.token_id]


def test_rows_in_parts_keep_what_they_keep_together(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(11, rows=9, vocab=200)
    rows = [request(seed=row, temperature=1.0, top_p=0.7) for row in range(9)]
    together = tokens(logits, rows)
    monkeypatch.setattr("awqkit_runtime.engine.token_choice._ORDERED_TOGETHER", 450)
    assert tokens(logits, rows) == together


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_give_a_token_of_the_vocabulary(
    params: dict[str, Any], value: float
) -> None:
    """An error comes when the step is collected; until then the next one may read the token."""
    everywhere, once = torch.full((2, VOCAB), value), random_logits(12)
    everywhere[1] = once
    everywhere[1, -1] = value
    assert all(0 <= token < VOCAB for token in tokens(everywhere, [request(**params)] * 2))
