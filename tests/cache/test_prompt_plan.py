"""Plans cover every new token once, over the keys it sees, and within their bounds."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from awqkit_runtime.cache.page_format import pages_for
from awqkit_runtime.cache.prompt_plan import (
    BATCH_KEYS,
    SQUARE_TOKENS,
    PromptCall,
    key_pieces,
    plan_prompts,
)
from awqkit_runtime.cache.sequence_span import SequenceSpan


def make_spans(*lengths: tuple[int, int]) -> list[SequenceSpan]:
    """(new tokens, context) of each."""
    spans, start = [], 0
    for length, context in lengths:
        pages = tuple(range(pages_for(length + context)))
        spans.append(SequenceSpan(start=start, length=length, context=context, pages=pages))
        start += length
    return spans


def plan(
    spans: list[SequenceSpan], window: int | None = None, fresh_keys: bool = True
) -> tuple[PromptCall, ...]:
    return plan_prompts(spans, window=window, fresh_keys=fresh_keys, squares=True)


def sizes(calls: tuple[PromptCall, ...]) -> list[list[int]]:
    return [[part.num_queries for part in call.parts] for call in calls]


def test_fresh_prompts_share_a_call() -> None:
    (call,) = plan(make_spans((5, 0), (700, 0), (1, 0)))
    assert not call.gathered and not call.square
    assert call.query_rows == call.key_rows == slice(0, 706)


def test_whole_multiples_are_squares_and_the_rest_is_ragged() -> None:
    calls = plan(make_spans((2 * SQUARE_TOKENS, 0), (SQUARE_TOKENS + 5, 0), (9, 0)))
    assert sizes(calls) == [[2 * SQUARE_TOKENS], [SQUARE_TOKENS], [5, 9]]
    assert [call.square for call in calls] == [True, True, False]
    rest = calls[-1]
    assert rest.key_rows == slice(2 * SQUARE_TOKENS, 3 * SQUARE_TOKENS + 14)
    assert [part.num_keys for part in rest.parts] == [SQUARE_TOKENS + 5, 9]


def test_equal_squares_share_a_call() -> None:
    calls = plan(make_spans(*[(SQUARE_TOKENS, 0)] * 4))
    assert sizes(calls) == [[SQUARE_TOKENS] * 4]


def test_no_square_has_a_window_or_a_context() -> None:
    assert not any(call.square for call in plan(make_spans((SQUARE_TOKENS, 0)), window=100))
    assert not any(call.square for call in plan(make_spans((SQUARE_TOKENS, 64))))
    assert plan(make_spans((SQUARE_TOKENS, 0)), window=SQUARE_TOKENS)[0].square


def test_only_fresh_keys_need_no_gathering() -> None:
    calls = plan(make_spans((10, 0), (10, 64), (10, 0)))
    assert [call.gathered for call in calls] == [False, True, False]
    assert all(call.gathered for call in plan(make_spans((10, 0)), fresh_keys=False))


def test_windows_leave_early_keys_out() -> None:
    (call,) = plan(make_spans((10, 500)), window=100)
    (part,) = call.parts
    assert (part.first_key, part.last_key) == (401, 510)
    assert key_pieces(call, 100) == (range(401, 510),)


def test_calls_gather_no_more_than_their_bound() -> None:
    rng = random.Random(1)
    spans = make_spans(*((rng.randint(1, 400), rng.randint(1, 9000)) for _ in range(40)))
    calls = plan(spans)
    assert len(calls) > 1
    assert all(call.num_keys <= BATCH_KEYS for call in calls)


@pytest.mark.parametrize(
    ("length", "context"),
    [(10, BATCH_KEYS - 10), (10, BATCH_KEYS), (2048, 10**6), (40_000, 100), (40_000, 70_000)],
)
def test_pieces_of_a_long_context_cover_it_once(length: int, context: int) -> None:
    (call,) = plan(make_spans((length, context)))
    pieces = key_pieces(call, None)
    assert pieces[0].start == 0 and pieces[-1].stop == length + context
    assert all(a.stop == b.start for a, b in pairwise(pieces))
    assert pieces[-1].start <= context  # Every query sees all of the pieces before.
    assert all(0 < len(piece) <= max(BATCH_KEYS, length) for piece in pieces)


@pytest.mark.parametrize("window", [None, 1, 300, 5000])
@pytest.mark.parametrize("fresh_keys", [True, False])
def test_every_row_is_covered_once_in_order(window: int | None, fresh_keys: bool) -> None:
    rng = random.Random(2)
    for _ in range(20):
        spans = make_spans(
            *((rng.choice([1, 7, 2048, 5000]), rng.choice([0, 0, 64, 3000])) for _ in range(9))
        )
        calls = plan(spans, window, fresh_keys)
        rows = [row for call in calls for row in range(*call.query_rows.indices(10**9))]
        assert rows == list(range(sum(span.length for span in spans)))
        for call in calls:
            lengths = {part.num_queries for part in call.parts}
            assert not call.square or len(lengths) == 1
            for part in call.parts:
                first = part.span.context + part.first
                unseen = 0 if window is None else max(0, first - window + 1)
                assert part.first_key <= unseen and part.last_key == part.span.context + part.stop
