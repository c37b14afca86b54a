"""Random requests by the thousands on a cache that is too small for them, and what must hold then.

- Every page comes back.
- Every request ends, within a bounded number of steps (`longest_waits`).
- With a deterministic engine every answer is the one that an idle engine gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from awqkit_runtime.bench.stress_traffic import Order, draw_order
from awqkit_runtime.bench.subject import Subject
from awqkit_runtime.bench.waits import Service, longest_waits
from awqkit_runtime.cache.page_format import PAGE_TOKENS, pages_for
from awqkit_runtime.config import EngineConfig, QuantPolicy, TokenCount
from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.request import Completion

T = TypeVar("T")

#: Tokens of the longest request; a model may take fewer.
SESSION_LEN = 300
#: Pages of the cache beyond those of the longest request.
_SPARE_PAGES = 2
#: Few enough for prompts to be split, and more than sequences run at once.
_STEP_TOKENS = 64
_BATCH = 16
#: Requests that are under way at once, at most.
_UNFINISHED = 64
#: A new one comes with this probability, then perhaps another, before each step.
_ARRIVAL = 0.7
_MOST_PROBLEMS = 20


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A request that ended, for whatever reason. Times are in steps of the engine."""

    order: Order
    completion: Completion
    arrived: int
    ended: int


@dataclass(frozen=True, kw_only=True)
class StressReport:
    """What came of it; `problems` is empty where all promises were kept."""

    requests: int
    aborted: int
    tokens: int
    steps: int
    seconds: float
    preemptions: int
    total_pages: int
    pages_not_back: int
    #: Steps from arrival to end of the request that took longest, and what it might have taken.
    longest_wait: int
    longest_allowed: int
    #: Answers that were compared with those of an idle engine.
    compared: int
    problems: tuple[str, ...]


def run_stress(
    subject: Subject,
    *,
    count: int,
    compare: int,
    quant_policy: QuantPolicy = 0,
    seed: int = 0,
    on_request: Callable[[], None] = lambda: None,
) -> StressReport:
    """Drive an engine with `count` requests, then ask an idle one for `compare` of them again.

    They are deterministic where something is compared. on_request: called for each request that
    has ended, and for each that has been compared.
    """
    config = _config(subject, quant_policy, deterministic=compare > 0)
    rng = Random(seed)
    engine = subject.engine(config)
    start = time.perf_counter()
    served = _drive(engine, count, subject.decoder.config.vocab_size, rng)
    ended = list(_telling(served, on_request))
    seconds = time.perf_counter() - start
    stats = engine.stats()
    sample = rng.sample(ended, min(compare, len(ended)))
    waits = longest_waits([_service(one) for one in ended])
    problems = [
        *_lost(ended, count, stats.used_pages),
        *(
            f"Request {number} took {wait} steps, {allowed} were allowed."
            for number, (wait, allowed) in enumerate(waits)
            if wait > allowed
        ),
        *different_answers(subject.engine(config), _telling(sample, on_request)),
    ]
    longest, allowed = max(waits, default=(0, 0))
    return StressReport(
        requests=count,
        aborted=sum(one.completion.finish_reason == "abort" for one in ended),
        tokens=sum(len(one.completion.token_ids) for one in ended),
        steps=max((one.ended for one in ended), default=0),
        seconds=seconds,
        preemptions=stats.preemptions,
        total_pages=stats.total_pages,
        pages_not_back=stats.used_pages,
        longest_wait=longest,
        longest_allowed=allowed,
        compared=len(sample),
        problems=tuple(problems[:_MOST_PROBLEMS]),
    )


def _config(subject: Subject, quant_policy: QuantPolicy, *, deterministic: bool) -> EngineConfig:
    decoder = subject.decoder
    pages = pages_for(decoder.session_len) + _SPARE_PAGES
    return EngineConfig(
        device=decoder.device,
        quant_policy=quant_policy,
        cache_max_entry_count=TokenCount(pages * PAGE_TOKENS),
        max_batch_size=_BATCH,
        max_prefill_tokens=_STEP_TOKENS,
        deterministic=deterministic,
        tp=subject.ranks,
    )


def _drive(engine: Engine, count: int, vocab_size: int, rng: Random) -> Iterator[Ended]:
    """Requests as they end, until all have."""
    arrived: dict[int, tuple[Order, int]] = {}
    step = drawn = 0
    while drawn < count or engine.has_unfinished():
        while drawn < count and len(arrived) < _UNFINISHED and rng.random() < _ARRIVAL:
            order = draw_order(rng, vocab_size, engine.session_len)
            number = engine.add_request(order.prompt, order.params)
            arrived[number] = (order, step)
            drawn += 1
        for number, (order, since) in list(arrived.items()):
            if order.abort_after is not None and step - since >= order.abort_after:
                completion = engine.abort(number)
                assert completion is not None
                yield _ended(arrived.pop(number), completion, step)
        if not engine.has_unfinished():
            continue
        outputs = engine.step()
        step += 1
        for output in outputs:
            if output.completion is not None:
                yield _ended(arrived.pop(output.request_id), output.completion, step)


def _telling(items: Iterable[T], tell: Callable[[], None]) -> Iterator[T]:
    """The items; tell() is called when one is done with."""
    for item in items:
        yield item
        tell()


def _ended(request: tuple[Order, int], completion: Completion, step: int) -> Ended:
    order, arrived = request
    return Ended(order=order, completion=completion, arrived=arrived, ended=step)


def _service(one: Ended) -> Service:
    return Service(
        arrived=one.arrived,
        ended=one.ended,
        priority=one.order.params.priority,
        tokens=len(one.order.prompt) + len(one.completion.token_ids),
    )


def _lost(ended: Sequence[Ended], count: int, used_pages: int) -> Iterator[str]:
    if len(ended) != count:
        yield f"{count - len(ended)} requests never ended."
    if used_pages:
        yield f"{used_pages} pages did not come back."
    broken = sum(one.completion.finish_reason == "error" for one in ended)
    if broken:
        yield f"{broken} requests ended with an error."


def different_answers(idle: Engine, sample: Iterable[Ended]) -> Iterator[str]:
    """Answers that `idle` does not give; of an aborted one its beginning counts."""
    for one in sample:
        idle.add_request(one.order.prompt, one.order.params)
        outputs = []
        while idle.has_unfinished():
            outputs += idle.step()
        alone, found = outputs[-1].completion, one.completion
        assert alone is not None
        expected = alone.token_ids
        if found.finish_reason == "abort":
            expected = expected[: len(found.token_ids)]
        elif found.finish_reason != alone.finish_reason:
            yield f"An answer ended by {found.finish_reason}, alone by {alone.finish_reason}."
        if found.token_ids != expected:
            yield (
                f"The answer to a prompt of {len(one.order.prompt)} tokens was "
                f"{found.token_ids}, alone it is {expected}."
            )
