"""Pages are neither lost nor shared wrongly, whatever sequences come and go."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awqkit_runtime.cache.allocator import BlockAllocator

PAGE = 4


def make(num_pages: int) -> BlockAllocator:
    return BlockAllocator(num_pages, page_tokens=PAGE)


def fill(allocator: BlockAllocator, tokens: list[int]) -> list[int]:
    """Pages of a sequence that was computed as a whole."""
    pages = allocator.reuse(tokens)
    first_new = len(pages)
    pages += allocator.allocate(allocator.pages_for(len(tokens)) - len(pages))
    for index in range(first_new, len(tokens) // PAGE):
        pages[index] = allocator.publish(
            pages[index],
            parent=pages[index - 1] if index else None,
            tokens=tuple(tokens[index * PAGE : (index + 1) * PAGE]),
        )
    return pages


def test_pages_are_distinct_and_come_back() -> None:
    allocator = make(5)
    first, second = allocator.allocate(2), allocator.allocate(3)
    assert sorted(first + second) == [0, 1, 2, 3, 4]
    assert allocator.available == 0 and allocator.used == 5
    with pytest.raises(ValueError, match="1 pages wanted, 0 of 5 left"):
        allocator.allocate(1)
    allocator.release(first)
    assert allocator.available == 2
    assert allocator.is_sound([second])
    assert not allocator.is_sound([first, second])


def test_full_pages_of_a_prefix_are_shared() -> None:
    allocator = make(8)
    first = fill(allocator, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    second = fill(allocator, [1, 2, 3, 4, 5, 6, 7, 8, 50, 51])
    assert first[:2] == second[:2] and first[2] != second[2]
    assert allocator.used == 4
    allocator.release(first)
    assert allocator.used == 3, "shared pages stay with the other sequence"
    assert allocator.is_sound([second])


def test_the_last_token_is_always_left_to_compute() -> None:
    allocator = make(8)
    allocator.release(fill(allocator, list(range(8))))
    assert len(allocator.reuse(list(range(8)))) == 1
    assert len(allocator.reuse(list(range(9)))) == 2
    assert allocator.reuse([0]) == [] and allocator.reuse([]) == []


def test_equal_pages_behind_different_prefixes_are_not_confused() -> None:
    allocator = make(8)
    allocator.release(fill(allocator, [1, 1, 1, 1, 7, 7, 7, 7]))
    assert len(allocator.reuse([2, 2, 2, 2, 7, 7, 7, 7, 0])) == 0
    assert len(allocator.reuse([7, 7, 7, 7, 0])) == 0


def test_tokens_with_equal_hashes_are_told_apart() -> None:
    """hash(-1) == hash(-2) in CPython, so these pages collide in the index."""
    allocator = make(4)
    assert hash((-1,) * PAGE) == hash((-2,) * PAGE)
    allocator.release(fill(allocator, [-1] * PAGE))
    assert allocator.reuse([-2] * PAGE + [0]) == []


def test_unused_pages_are_given_away_last_used_first_out() -> None:
    allocator = make(4)
    old = fill(allocator, [1] * 8)
    allocator.release(old)
    recent = fill(allocator, [2] * 8)
    allocator.release(recent)
    allocator.release(allocator.reuse([1] * 9))
    allocator.allocate(2)
    assert allocator.reuse([2] * 9) == []
    assert allocator.reuse([1] * 9) == old


def test_a_prefix_outlives_what_continues_it() -> None:
    allocator = make(3)
    pages = fill(allocator, list(range(12)))
    allocator.release(pages)
    allocator.allocate(1)
    assert allocator.reuse(list(range(13))) == pages[:2]


def test_twins_computed_at_the_same_time_become_one_page() -> None:
    allocator = make(4)
    tokens = tuple(range(PAGE))
    (first,), (second,) = allocator.allocate(1), allocator.allocate(1)
    assert allocator.publish(first, parent=None, tokens=tokens) == first
    assert allocator.publish(second, parent=None, tokens=tokens) == first
    assert allocator.used == 1
    allocator.release([first])
    assert allocator.used == 1
    assert allocator.is_sound([[first]])


def test_a_tail_goes_to_who_continues_it() -> None:
    allocator = make(6)
    pages = fill(allocator, [1, 2, 3, 4, 5, 6])
    allocator.retire(pages[1], parent=pages[0], tokens=(5, 6))
    allocator.release(pages[:1])
    assert allocator.used == 0 and allocator.is_sound([])
    assert allocator.adopt(None, [5, 6, 7]) is None and allocator.adopt(pages[0], [6, 5]) is None
    assert allocator.reuse([1, 2, 3, 4, 5, 6, 7]) == pages[:1]
    assert allocator.adopt(pages[0], [5, 7]) == (pages[1], 1)
    assert allocator.adopt(pages[0], [5, 6]) is None, "it has one owner"
    assert allocator.is_sound([pages])


def test_the_longest_common_beginning_wins_and_tails_go_first() -> None:
    allocator = make(3)
    for tokens in ((1, 2), (1, 2, 3), (1, 9)):
        [page] = allocator.allocate(1)
        allocator.retire(page, parent=None, tokens=tokens)
    found = allocator.adopt(None, [1, 2, 3, 4])
    assert found is not None and found[1] == 3
    assert len(allocator.allocate(2)) == 2 and allocator.adopt(None, [1, 9]) is None


def storm(seed: int, *, steps: int, num_pages: int) -> None:
    """Random sequences over few tokens, so that prefixes meet often; checked after every event.

    `contents` remembers what was computed into each page with everything before it; a page that
    is found again must still hold exactly that.
    """
    rng = random.Random(seed)
    allocator = make(num_pages)
    live: list[list[int]] = []
    contents: dict[int, tuple[int, ...]] = {}
    tails: dict[int, tuple[int, ...]] = {}
    for _ in range(steps):
        tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 6 * PAGE))]
        if live and rng.random() < 0.45:
            pages = live.pop(rng.randrange(len(live)))
            if tails.get(pages[-1]):
                parent = pages[-2] if len(pages) > 1 else None
                own = tails[pages[-1]][(len(pages) - 1) * PAGE :]
                allocator.retire(pages[-1], parent=parent, tokens=own)
                pages = pages[:-1]
            allocator.release(pages)
        else:
            reused = allocator.reuse(tokens)
            for index, page in enumerate(reused):
                assert contents[page] == tuple(tokens[: (index + 1) * PAGE])
            done = len(reused) * PAGE
            tail = allocator.adopt(reused[-1] if reused else None, tokens[done:-1][:PAGE])
            if tail is not None:
                assert tails[tail[0]][: done + tail[1]] == tuple(tokens[: done + tail[1]])
                tails[tail[0]] = ()
                reused.append(tail[0])
            missing = allocator.pages_for(len(tokens)) - len(reused)
            if missing > allocator.available:
                allocator.release(reused)
                continue
            pages = reused + allocator.allocate(missing)
            assert len(set(pages)) == len(pages)
            held = {page for table in live for page in table}
            assert not held & set(pages[len(reused) :])
            published = rng.randrange(done // PAGE, len(tokens) // PAGE + 1)
            for index in range(done // PAGE, published):
                contents[pages[index]] = tuple(tokens[: (index + 1) * PAGE])
                pages[index] = allocator.publish(
                    pages[index],
                    parent=pages[index - 1] if index else None,
                    tokens=tuple(tokens[index * PAGE : (index + 1) * PAGE]),
                )
                assert contents[pages[index]] == tuple(tokens[: (index + 1) * PAGE])
            complete = published == len(tokens) // PAGE and len(tokens) % PAGE
            tails[pages[-1]] = tuple(tokens) if complete else ()
            live.append(pages)
        assert allocator.is_sound(live)
    for table in live:
        allocator.release(table)
    assert allocator.used == 0
    assert allocator.is_sound([])
    assert sorted(allocator.allocate(num_pages)) == list(range(num_pages))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), num_pages=st.integers(1, 24))
def test_no_page_is_lost_or_mixed_up_in_a_storm(seed: int, num_pages: int) -> None:
    storm(seed, steps=80, num_pages=num_pages)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_long_storms(seed: int) -> None:
    storm(seed, steps=20_000, num_pages=7 + seed)
