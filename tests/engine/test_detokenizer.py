"""Pieces of text are whole characters, and together they are the text of all tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from awqkit_runtime.engine.answer_text import AnswerText
from awqkit_runtime.engine.detokenizer import REPLACEMENT, IncrementalDetokenizer, StopTexts
from awqkit_runtime.engine.fast_decoder import FastDecoder
from awqkit_runtime.engine.sampling_params import SamplingParams
from tests.engine.tokenizers_for_tests import (
    TEXT,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    shared_folder,
    stories_tokenizer,
)

MAKERS = [byte_level_tokenizer, byte_fallback_tokenizer, stories_tokenizer]
every_tokenizer = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
WRITING = st.text(st.sampled_from([*sorted(set(TEXT)), "\U0001f600", "𠀀", " "]), max_size=60)


def pieces_of(tokenizer: Any, ids: list[int], **options: Any) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, **options)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


def whole(tokenizer: Any, ids: list[int], *, skip_special_tokens: bool = True) -> str:
    return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def size(tokenizer: Any) -> int:
    return len(tokenizer.vocabulary)


@every_tokenizer
@settings(max_examples=60, deadline=None)
@given(text=WRITING)
@example(text=TEXT)
@example(text="")
@example(text=" ")
@example(text="   two  spaces   ")
@example(text="👨‍👩‍👧‍👦" * 20)
def test_pieces_of_any_writing_are_whole_characters_and_add_up(
    make: Callable[[], Any], text: str
) -> None:
    tokenizer = make()
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == whole(tokenizer, ids)
    assert not any(REPLACEMENT in piece for piece in pieces)


@every_tokenizer
@settings(max_examples=40, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_the_fast_way_of_decoding_gives_the_same_text(
    make: Callable[[], Any], data: st.DataObject, skip: bool
) -> None:
    tokenizer = make()
    decoder = FastDecoder(tokenizer)
    ids = data.draw(st.lists(st.integers(0, size(tokenizer) - 1), max_size=4))
    for _ in range(2):  # The second time from memory.
        assert whole(decoder, ids, skip_special_tokens=skip) == whole(
            tokenizer, ids, skip_special_tokens=skip
        )


@every_tokenizer
@pytest.mark.parametrize("cut", [1, 4, 11])
def test_a_prompt_and_the_text_after_it_join_as_one_text(make: Callable[[], Any], cut: int) -> None:
    tokenizer = make()
    ids = tokenizer.encode(
        "The dog was on a little hill, and the cat too.", add_special_tokens=False
    )
    pieces = pieces_of(tokenizer, ids[cut:], after=ids[:cut])
    assert whole(tokenizer, ids[:cut]) + "".join(pieces) == whole(tokenizer, ids)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_pieces_of_random_byte_level_tokens_add_up(data: st.DataObject, skip: bool) -> None:
    """Broken characters too: the decoder replaces each where it stands."""
    tokenizer = byte_level_tokenizer()
    ids = data.draw(st.lists(st.integers(0, size(tokenizer) - 1), max_size=80))
    pieces = pieces_of(tokenizer, ids, skip_special_tokens=skip)
    assert "".join(pieces) == whole(tokenizer, ids, skip_special_tokens=skip)


@pytest.mark.parametrize("make", MAKERS[1:], ids=lambda make: make.__name__)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_of_random_fallback_tokens_add_up_where_characters_are_whole(
    make: Callable[[], Any], data: st.DataObject
) -> None:
    """These decoders replace a whole run of bytes for one broken byte in it; what was shown
    before the break stays shown, so only texts without a break can be compared."""
    tokenizer = make()
    token = st.one_of(st.integers(0, size(tokenizer) - 1), st.integers(35, 130))
    ids = data.draw(st.lists(token, max_size=80))
    pieces = pieces_of(tokenizer, ids)
    if REPLACEMENT not in whole(tokenizer, ids):
        assert "".join(pieces) == whole(tokenizer, ids)


def test_a_byte_that_breaks_a_run_does_not_take_back_what_was_shown() -> None:
    tokenizer = byte_fallback_tokenizer()
    ids = [3 + byte for byte in "€".encode()] + [3 + 0xFF] + [tokenizer.vocabulary["a"]]
    assert whole(tokenizer, ids) == REPLACEMENT * 4 + "a"
    assert pieces_of(tokenizer, ids) == ["", "", "€", "", REPLACEMENT + "a", ""]


@every_tokenizer
def test_a_character_shows_with_its_last_token(make: Callable[[], Any]) -> None:
    tokenizer = make()
    before = tokenizer.encode("a", add_special_tokens=False)
    ids = tokenizer.encode("a\U0001f9ff", add_special_tokens=False)[len(before) :]
    assert len(ids) > 1
    detokenizer = IncrementalDetokenizer(tokenizer)
    for token in before:
        detokenizer.push(token)
    assert [detokenizer.push(token) for token in ids] == [""] * (len(ids) - 1) + ["\U0001f9ff"]


@every_tokenizer
def test_an_unfinished_character_shows_at_the_end_only(make: Callable[[], Any]) -> None:
    tokenizer = make()
    ids = tokenizer.encode("a\U0001f9ff", add_special_tokens=False)[:-1]
    pieces = pieces_of(tokenizer, ids)
    assert REPLACEMENT in pieces[-1] and not any(REPLACEMENT in piece for piece in pieces[:-1])
    assert "".join(pieces) == whole(tokenizer, ids)


def test_endless_broken_bytes_are_not_held_forever() -> None:
    tokenizer = byte_level_tokenizer()
    broken = tokenizer.vocabulary["ÿ"]
    longest = 0

    class Watched:
        def decode(self, token_ids: list[int], **options: Any) -> str:
            nonlocal longest
            longest = max(longest, len(token_ids))
            return tokenizer.decode(token_ids, **options)

    detokenizer = IncrementalDetokenizer(Watched())
    shown = "".join(detokenizer.push(broken) for _ in range(500))
    assert len(shown) > 400 and longest < 100
    assert shown + detokenizer.flush() == REPLACEMENT * 500


def test_a_large_converted_vocabulary_streams_like_the_small_ones() -> None:
    from awqkit.checkpoint.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(shared_folder("tokenizers/internlm2"))
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == whole(tokenizer, ids)
    assert not any(REPLACEMENT in piece for piece in pieces)


def test_special_tokens_show_only_when_wanted() -> None:
    tokenizer = byte_level_tokenizer()
    ids = [0, *tokenizer.encode("hi", add_special_tokens=False), 2, 1]
    assert "".join(pieces_of(tokenizer, ids)) == "hi"
    assert "".join(pieces_of(tokenizer, ids, skip_special_tokens=False)) == (
        "<s>hi<|im_start|></s>"
    )


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab ", max_size=30),
    stops=st.lists(st.text("ab ", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=10),
)
def test_stop_texts_cut_however_the_text_is_split(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(edges)]
    checker, shown, stopped = StopTexts(stops), "", False
    for part in parts:
        piece, stopped = checker.push(part)
        shown += piece
        assert not any(stop in shown for stop in stops)
        if stopped:
            break
    if not stopped:
        shown += checker.flush()
    ends = [text.find(stop) for stop in stops if stop in text]
    assert stopped == bool(ends)
    if not stopped:
        assert shown == text
    elif len(parts) == 1:
        assert shown == text[: min(ends)]
    else:
        assert text.startswith(shown) and any(text.startswith(s, len(shown)) for s in stops)


def test_what_might_become_a_stop_text_is_held_back_and_released() -> None:
    checker = StopTexts(["END"])
    assert checker.push("an E") == ("an ", False)
    assert checker.push("N") == ("", False)
    assert checker.push("Ergy EN") == ("ENErgy ", False)
    assert checker.push("D of") == ("", True)


def answer(ids: list[int], **params: Any) -> tuple[str, bool, int]:
    """(text, stopped, tokens read)."""
    stream = AnswerText(byte_level_tokenizer(), SamplingParams(**params))
    pieces, count = [], 0
    for count, token in enumerate(ids, start=1):  # noqa: B007
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    assert "".join(pieces) == stream.text
    return stream.text, stream.stopped, count


def test_an_answer_ends_before_a_stop_text_that_spans_tokens() -> None:
    ids = byte_level_tokenizer().encode("one\n\nUser: two", add_special_tokens=False)
    text, stopped, count = answer(ids, stop=["\n\nUser:", "nothing"])
    assert (text, stopped) == ("one", True) and count < len(ids)
    assert answer(ids, stop="User: two!")[:2] == ("one\n\nUser: two", False)


def test_stop_texts_are_not_looked_for_below_min_tokens() -> None:
    ids = byte_level_tokenizer().encode("x one x two", add_special_tokens=False)
    assert answer(ids, stop="x")[0] == ""
    assert answer(ids, stop="x", min_tokens=2)[0] == "x one "


def test_a_stop_text_that_only_the_end_completes_still_cuts() -> None:
    tokenizer = byte_level_tokenizer()
    broken = tokenizer.vocabulary["ÿ"]
    ids = [*tokenizer.encode("ab", add_special_tokens=False), broken]
    assert answer(ids, stop="b" + REPLACEMENT)[:2] == ("a", True)
