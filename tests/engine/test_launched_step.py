"""Steps that are launched before the one in front of them is collected."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine.launched_step import LaunchedStep, finite_rows, launcher
from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.runner import Runner
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.engine.scheduler import Chunk
from awqkit_runtime.engine.steady_runner import SteadyRunner
from awqkit_runtime.errors import NumericsError
from tests.engine.fakes import VOCAB, OneLayerDecoder

TOKENS = 100


def runner(decoder: Any = None, new: Any = Runner) -> Any:
    decoder = decoder or OneLayerDecoder()
    page_format = PageFormat.for_policy(decoder.config, 0, decoder.dtype)
    return new(decoder, PagePool(page_format, 12 * pages_for(TOKENS), "cpu"))


def requests(count: int, **params: Any) -> list[Request]:
    """With prompts of different lengths, each with pages for TOKENS tokens."""
    rng, size = random.Random(0), pages_for(TOKENS)
    found = []
    for number in range(count):
        prompt = tuple(rng.randrange(VOCAB) for _ in range(5 + 7 * number))
        one = Request(
            request_id=number,
            prompt_token_ids=prompt,
            params=SamplingParams(**params),
            seed=number,
            stop_token_ids=frozenset(),
            max_output=50,
        )
        one.pages = list(range(number * size, (number + 1) * size))
        found.append(one)
    return found


def prompts(batch: list[Request]) -> list[Chunk]:
    return [
        Chunk(request=one, start=0, length=len(one.prompt_token_ids), samples=True) for one in batch
    ]


def decode(one: Request, *, ahead: int = 0) -> Chunk:
    """The step that reads the newest token; ahead: tokens that the request does not have yet."""
    start = one.num_tokens - 1 + ahead
    return Chunk(request=one, start=start, length=1, samples=True, follows=ahead > 0)


def deliver(step: LaunchedStep) -> list[int]:
    tokens = [token.token_id for token in step.collect()]
    for one, token in zip(step.requests, tokens, strict=True):
        one.output_token_ids.append(token)
    return tokens


def step_by_step(engine: Any, batch: list[Request], steps: int) -> list[list[int]]:
    found = [deliver(engine.launch(prompts(batch), None))]
    for _ in range(steps):
        found.append(deliver(engine.launch([decode(one) for one in batch], None)))
    return found


def in_flight(engine: Any, batch: list[Request], steps: int) -> list[list[int]]:
    """Each step launched before the one in front of it is collected, in another order."""
    flying, found = engine.launch(prompts(batch), None), []
    for number in range(steps):
        order = batch[::-1] if number % 2 else batch
        behind = engine.launch([decode(one, ahead=1) for one in order], flying)
        found.append(deliver(flying))
        flying = behind
    return [*found, deliver(flying)]


@pytest.mark.parametrize("params", [{}, {"temperature": 1.5, "top_p": 0.9, "min_tokens": 3}])
def test_following_gives_the_tokens_of_one_step_after_the_other(params: dict[str, Any]) -> None:
    first, second = requests(3, **params), requests(3, **params)
    step_by_step(runner(), first, 10)
    in_flight(runner(), second, 10)
    assert [one.output_token_ids for one in first] == [one.output_token_ids for one in second]


def test_a_mixed_step_follows_too() -> None:
    """A decode that follows beside a prompt's chunk."""
    batch, alone = requests(2), requests(2)
    engine = runner()
    flying = engine.launch(prompts(batch[:1]), None)
    both = engine.launch([decode(batch[0], ahead=1), *prompts(batch[1:])], flying)
    deliver(flying)
    deliver(both)
    step_by_step(runner(), alone[:1], 1)
    step_by_step(runner(), alone[1:], 0)
    assert [one.output_token_ids for one in batch] == [one.output_token_ids for one in alone]


def test_a_step_may_sample_nothing() -> None:
    (one,) = requests(1)
    step = runner().launch([Chunk(request=one, start=0, length=3, samples=False)], None)
    assert step.requests == () and step.collect() == []


def test_to_follow_takes_a_step_that_samples_the_request() -> None:
    batch, engine = requests(2), runner()
    flying = engine.launch(prompts(batch[:1]), None)
    for previous in (flying, None):
        with pytest.raises(ValueError, match="follows"):
            engine.launch([decode(batch[1], ahead=1)], previous)


class BrokenDecoder(OneLayerDecoder):
    def logits(self, hidden: Tensor) -> Tensor:
        logits = super().logits(hidden)
        logits[-1, 5] = float("inf")
        return logits


def test_numbers_that_are_not_finite_are_told_when_collected() -> None:
    step = runner(BrokenDecoder()).launch(prompts(requests(2)), None)
    with pytest.raises(NumericsError, match=r"not finite in torch\.float32"):
        step.collect()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_number_makes_a_row_not_finite(value: float) -> None:
    logits = torch.randn(3, 50)
    logits[1, 7] = value
    assert finite_rows(logits).tolist() == [1, 0, 1]


def test_logprobs_are_collected_with_the_token() -> None:
    step = runner().launch(prompts(requests(2, logprobs=2, temperature=1.0)), None)
    for token in step.collect():
        assert token.logprobs is not None and token.token_id in token.logprobs


def test_runners_that_cannot_launch_run_at_once() -> None:
    steady = runner(new=SteadyRunner)
    assert not steady.can_follow and launcher(runner()).can_follow
    first, second = requests(3), requests(3)
    step_by_step(launcher(steady), first, 5)
    step_by_step(runner(), second, 5)
    assert [one.output_token_ids for one in first] == [one.output_token_ids for one in second]
