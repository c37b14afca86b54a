"""Who runs in which step: pure decisions, tested without a model."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awqkit_runtime.cache.allocator import BlockAllocator
from awqkit_runtime.engine.request import PRIORITY_STEPS, Request
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.engine.scheduler import Chunk, Scheduler
from awqkit_runtime.errors import RequestError

PAGE = 4


def make(
    *, pages: int = 64, session: int = 1000, batch: int = 8, budget: int = 100, reuse: bool = True
) -> Scheduler:
    return Scheduler(
        BlockAllocator(pages, page_tokens=PAGE),
        session_len=session,
        max_batch_size=batch,
        max_step_tokens=budget,
        prefix_caching=reuse,
    )


def add(
    scheduler: Scheduler,
    number: int,
    length: int,
    *,
    tokens: list[int] | None = None,
    priority: int = 0,
) -> Request:
    prompt = tokens or [1000 * number + i for i in range(length)]
    request = Request(
        request_id=number,
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(priority=priority),
        seed=0,
        stop_token_ids=frozenset(),
        max_output=scheduler.room_after(len(prompt)),
    )
    scheduler.add(request)
    return request


def compute(scheduler: Scheduler, chunks: list[Chunk]) -> None:
    """Does what the engine does after a step, with made-up tokens."""
    for chunk in chunks:
        assert chunk.length > 0 and chunk.start == chunk.request.num_computed
        assert len(chunk.request.pages) * PAGE >= chunk.start + chunk.length
        scheduler.advance(chunk)
        if chunk.samples:
            chunk.request.output_token_ids.append(chunk.request.num_tokens)


def shape(chunks: list[Chunk]) -> list[tuple[int, int, int]]:
    return [(chunk.request.request_id, chunk.start, chunk.length) for chunk in chunks]


def test_prompts_are_split_and_decodes_come_first() -> None:
    scheduler = make(budget=10)
    for number, length in enumerate([6, 12, 5]):
        add(scheduler, number, length)
    steps = []
    for _ in range(4):
        chunks = scheduler.schedule()
        compute(scheduler, chunks)
        steps.append(shape(chunks))
    assert steps == [
        [(0, 0, 6), (1, 0, 4)],
        [(0, 6, 1), (1, 4, 8), (2, 0, 1)],
        [(0, 7, 1), (1, 12, 1), (2, 1, 4)],
        [(0, 8, 1), (1, 13, 1), (2, 5, 1)],
    ]


def test_a_chunk_knows_whether_it_ends_the_prompt() -> None:
    scheduler = make(budget=4)
    add(scheduler, 0, 6)
    first = scheduler.schedule()
    compute(scheduler, first)
    second = scheduler.schedule()
    assert [chunk.samples for chunk in first + second] == [False, True]


def test_batch_size_limits_who_runs() -> None:
    scheduler = make(batch=2)
    requests = [add(scheduler, number, 3) for number in range(3)]
    assert len(scheduler.schedule()) == 2
    assert list(scheduler.waiting) == requests[2:]
    scheduler.remove(requests[0])
    scheduler.schedule()
    assert scheduler.running == requests[1:]


def test_no_one_overtakes_a_request_that_waits_for_pages() -> None:
    scheduler = make(pages=4)
    add(scheduler, 0, 8)
    big, small = add(scheduler, 1, 16), add(scheduler, 2, 1)
    compute(scheduler, scheduler.schedule())
    assert list(scheduler.waiting) == [big, small]


def test_a_computed_prefix_is_not_computed_again() -> None:
    scheduler = make()
    shared = list(range(10))
    first = add(scheduler, 0, 0, tokens=[*shared, 77])
    compute(scheduler, scheduler.schedule())
    add(scheduler, 1, 0, tokens=[*shared, 88, 99])
    assert shape(scheduler.schedule()) == [(0, 11, 1), (1, 8, 4)]
    assert scheduler.requests[1].pages[:2] == first.pages[:2]
    assert scheduler.reused_tokens == 8


def test_answers_become_prefixes_too() -> None:
    """The next turn of a chat brings the last answer back as part of its prompt."""
    scheduler = make()
    first = add(scheduler, 0, 3)
    for _ in range(9):
        compute(scheduler, scheduler.schedule())
    history = first.tokens()
    scheduler.remove(first)
    add(scheduler, 1, 0, tokens=[*history, 5])
    # The last token of the answer was chosen, but never read.
    assert shape(scheduler.schedule()) == [(1, 11, 2)]


def test_prefix_caching_can_be_off() -> None:
    scheduler = make(reuse=False)
    add(scheduler, 0, 0, tokens=list(range(10)))
    compute(scheduler, scheduler.schedule())
    add(scheduler, 1, 0, tokens=list(range(10)))
    assert shape(scheduler.schedule())[1] == (1, 0, 10)
    assert scheduler.reused_tokens == 0


def test_the_latest_request_gives_way_and_comes_back_with_its_tokens() -> None:
    scheduler = make(pages=4, reuse=False)
    early, late = add(scheduler, 0, 4), add(scheduler, 1, 4)
    while late in scheduler.running or not late.output_token_ids:
        compute(scheduler, scheduler.schedule())
    assert scheduler.preemptions == 1
    assert late.pages == [] and late.num_computed == 0 and late.output_token_ids
    assert scheduler.waiting[0] is late
    known = late.num_tokens
    scheduler.remove(early)
    assert shape(scheduler.schedule()) == [(1, 0, known)]


def test_a_preempted_request_finds_its_own_pages_while_they_last() -> None:
    scheduler = make(pages=6)
    early, late = add(scheduler, 0, 4), add(scheduler, 1, 9)
    while scheduler.preemptions == 0:
        compute(scheduler, scheduler.schedule())
    assert late.pages == []
    scheduler.remove(early)
    chunk = scheduler.schedule()[0]
    assert chunk.request is late and chunk.start >= PAGE


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (0, "prompt is empty"),
        (40, "session length, 40.*raise session_len"),
        (41, "session length"),
        (13, r"whole cache holds 12.*cache_max_entry_count\.$"),
    ],
)
def test_what_can_never_fit_is_refused(length: int, text: str) -> None:
    scheduler = make(pages=3, session=40)
    with pytest.raises(RequestError, match=f"(?s){text}"):
        scheduler.room_after(length)


def test_the_cache_bounds_an_answer_so_that_a_lone_request_always_ends() -> None:
    scheduler = make(pages=3, session=40)
    assert scheduler.room_after(12) == 1
    assert scheduler.room_after(5) == 8
    assert make(session=40).room_after(39) == 1


def test_recovery_after_an_interrupted_step_loses_no_request() -> None:
    scheduler = make(pages=8)
    requests = [add(scheduler, number, 6) for number in range(3)]
    compute(scheduler, scheduler.schedule())
    scheduler.allocator.allocate(1)
    scheduler.running.remove(requests[1])
    scheduler.recover()
    assert [request.request_id for request in scheduler.waiting] == [0, 1, 2]
    assert scheduler.allocator.used == 0
    assert shape(scheduler.schedule())[0] == (0, 0, 7)


def test_recovery_of_a_sound_state_keeps_what_is_computed() -> None:
    scheduler = make()
    request = add(scheduler, 0, 6)
    scheduler.schedule()
    scheduler.recover()
    chunks = scheduler.schedule()
    assert shape(chunks) == [(0, 0, 6)], "what was not recorded is computed again"
    compute(scheduler, chunks)
    scheduler.advance(scheduler.schedule()[0])
    scheduler.recover()
    assert request.num_computed == 6 and request.pages
    assert shape(scheduler.schedule()) == [(0, 6, 1)], "no token came: the last one runs again"


def test_a_page_stays_published_whose_last_token_is_computed_again() -> None:
    scheduler = make()
    request = add(scheduler, 0, PAGE)
    scheduler.advance(scheduler.schedule()[0])
    scheduler.recover()
    assert request.num_computed == PAGE - 1
    scheduler.remove(request)
    twins = [add(scheduler, number, 0, tokens=[0, 1, 2, 3, 4]) for number in (1, 2)]
    chunks = scheduler.schedule()
    assert shape(chunks) == [(1, PAGE, 1), (2, PAGE, 1)]
    assert scheduler.allocator.is_sound([twin.pages for twin in twins])


def test_the_more_urgent_enters_first_and_equals_in_order() -> None:
    scheduler = make(batch=1)
    for number, priority in enumerate([0, 0, 2, 1, 2]):
        add(scheduler, number, 3, priority=priority)
    entered = []
    while scheduler.requests:
        scheduler.schedule()
        entered += [request.request_id for request in scheduler.running]
        scheduler.remove(scheduler.running[0])
    assert entered == [2, 4, 3, 0, 1]


def test_who_runs_is_not_pushed_out_by_who_is_more_urgent() -> None:
    scheduler = make(batch=1)
    first = add(scheduler, 0, 3)
    scheduler.schedule()
    urgent = add(scheduler, 1, 3, priority=5)
    scheduler.schedule()
    assert (scheduler.running, scheduler.waiting) == ([first], [urgent])


def test_the_least_urgent_gives_way_and_waits_behind_the_more_urgent() -> None:
    scheduler = make(pages=4, reuse=False)
    early, urgent = add(scheduler, 0, 4), add(scheduler, 1, 4, priority=1)
    while early in scheduler.running or not early.output_token_ids:
        compute(scheduler, scheduler.schedule())
    late = add(scheduler, 2, 4, priority=1)
    assert scheduler.preemptions == 1 and scheduler.running == [urgent]
    assert scheduler.waiting == [late, early]


def test_who_waits_long_enough_is_no_longer_overtaken() -> None:
    scheduler = make(batch=1)
    running, waiting = add(scheduler, 0, 3), add(scheduler, 1, 3)
    for _ in range(PRIORITY_STEPS):
        scheduler.schedule()
    add(scheduler, 2, 3, priority=2)
    add(scheduler, 3, 3, priority=1)
    scheduler.remove(running)
    order = [request.request_id for request in scheduler.waiting]
    assert order == [2, 1, 3] and waiting.arrived == 0


def storm(seed: int, *, arrivals: int) -> None:
    """Random traffic on a cache that is too small for it: all ends, and nothing leaks."""
    rng = random.Random(seed)
    pages, budget = rng.randrange(3, 20), rng.randrange(1, 30)
    scheduler = make(
        pages=pages, session=rng.randrange(8, 120), batch=rng.randrange(1, 9), budget=budget
    )
    longest = min(scheduler.session_len, scheduler.cache_tokens + 1)
    goals: dict[int, int] = {}
    arrived = 0
    idle_steps = 0
    while arrived < arrivals or scheduler.requests:
        if arrived < arrivals and rng.random() < 0.4:
            prompt = [rng.randrange(2) for _ in range(rng.randrange(1, longest))]
            urgency = rng.randrange(-2, 3)
            request = add(scheduler, arrived, 0, tokens=prompt, priority=urgency)
            goals[arrived] = rng.randrange(1, request.max_output + 1)
            arrived += 1
        if scheduler.requests and rng.random() < 0.05:
            scheduler.remove(rng.choice(list(scheduler.requests.values())))
        chunks = scheduler.schedule()
        assert bool(chunks) == bool(scheduler.requests)
        assert sum(chunk.length for chunk in chunks) <= budget
        assert len(scheduler.running) <= scheduler.max_batch_size
        placed = [*scheduler.running, *scheduler.waiting]
        assert sorted(request.request_id for request in placed) == sorted(scheduler.requests)
        for queue in (scheduler.running, scheduler.waiting):
            assert queue == sorted(queue, key=lambda request: request.turn)
        compute(scheduler, chunks)
        assert scheduler.allocator.is_sound([request.pages for request in scheduler.running])
        for request in list(scheduler.requests.values()):
            if len(request.output_token_ids) >= goals[request.request_id]:
                scheduler.remove(request)
        idle_steps += 1
        assert idle_steps < 400 * arrivals
    assert scheduler.allocator.used == 0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_request_ends_in_a_storm(seed: int) -> None:
    storm(seed, arrivals=12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_long_storms(seed: int) -> None:
    storm(seed, arrivals=500)
