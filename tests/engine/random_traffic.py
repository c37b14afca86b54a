"""Requests of all kinds at random times, and an engine driven by them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.request import Completion, RequestOutput
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.errors import NumericsError
from tests.engine.fakes import VOCAB


class Mishap(Exception):
    """What a test lets go wrong."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """at: the step before which it comes. Given up after so many tokens, or steps, if at all."""

    at: int
    prompt: list[int]
    params: SamplingParams
    choices: int
    abort_tokens: int | None
    abort_steps: int | None


def draw_orders(rng: random.Random, *, count: int, longest: int) -> list[Order]:
    """longest: tokens of a prompt, half those of an answer. Half of the prompts begin alike."""
    shared = [rng.randrange(VOCAB) for _ in range(longest)]
    return sorted(
        (_order(rng, shared, horizon=2 * count, longest=longest) for _ in range(count)),
        key=lambda order: order.at,
    )


def _order(rng: random.Random, shared: list[int], *, horizon: int, longest: int) -> Order:
    own = [rng.randrange(VOCAB) for _ in range(rng.randint(1, longest // rng.choice((1, 8))))]
    common = rng.randrange(len(own)) if rng.random() < 0.5 else 0
    params = SamplingParams(
        temperature=rng.choice((0.0, 1.0)),
        seed=rng.getrandbits(32),
        max_tokens=rng.choice((1, *(rng.randint(1, 2 * longest) for _ in range(4)))),
        stop_token_ids=[rng.randrange(VOCAB) for _ in range(rng.choice((0, 0, 0, 1)))],
        stop=[f"{rng.randrange(VOCAB)} {rng.randrange(10)}"] if rng.random() < 0.3 else [],
        frequency_penalty=rng.choice((0.0,) * 19 + (0.5,)),
        priority=rng.choice((-1, 0, 0, 0, 1)),
    )
    ends = rng.random()
    return Order(
        at=rng.randrange(horizon),
        prompt=shared[:common] + own[common:],
        params=params,
        choices=rng.choice((1, 1, 1, 3)),
        abort_tokens=rng.randint(1, 20) if ends < 0.15 else None,
        abort_steps=rng.randrange(20) if ends > 0.9 else None,
    )


class Drive:
    """Serves orders with an engine until all have ended; `done` by order and choice."""

    def __init__(self, engine: Engine, orders: list[Order]) -> None:
        self.engine = engine
        self.done: dict[tuple[int, int], Completion] = {}
        self.texts: dict[tuple[int, int], str] = {}
        self.mishaps = 0
        self._orders = orders
        self._names: dict[int, tuple[int, int]] = {}
        self._tokens: dict[int, int] = {}

    def run(self) -> Drive:
        step = arrived = 0
        while arrived < len(self._orders) or self.engine.has_unfinished():
            while arrived < len(self._orders) and self._orders[arrived].at <= step:
                self._submit(arrived)
                arrived += 1
            for number in [n for n in self._names if self._is_old(n, step)]:
                self._abort(number)
            self._step()
            self._check_pages()
            step += 1
            assert step < 1000 * len(self._orders)
        assert self.engine.stats().used_pages == 0 and not self._names
        assert self.engine.step() == []
        return self

    def _submit(self, index: int) -> None:
        order = self._orders[index]
        numbers = self.engine.add_choices(order.prompt, order.params, order.choices)
        for choice, number in enumerate(numbers):
            self._names[number] = index, choice
            self._tokens[number] = 0
            self.texts[index, choice] = ""

    def _is_old(self, number: int, step: int) -> bool:
        order = self._orders[self._names[number][0]]
        return order.abort_steps is not None and step - order.at >= order.abort_steps

    def _abort(self, number: int) -> None:
        completion = self.engine.abort(number)
        assert completion is not None
        self.done[self._names.pop(number)] = completion

    def _step(self) -> None:
        try:
            outputs = self.engine.step()
        except (Mishap, NumericsError, KeyboardInterrupt):
            self.mishaps += 1
            return
        for output in outputs:
            self._take(output)

    def _take(self, output: RequestOutput) -> None:
        number = output.request_id
        name = self._names[number]
        self.texts[name] += output.text
        self._tokens[number] += len(output.token_ids)
        if output.completion is not None:
            self.done[name] = output.completion
            del self._names[number]
        elif self._tokens[number] == self._orders[name[0]].abort_tokens:
            self._abort(number)

    def _check_pages(self) -> None:
        scheduler = self.engine._scheduler
        assert scheduler.allocator.is_sound([request.pages for request in scheduler.running])
