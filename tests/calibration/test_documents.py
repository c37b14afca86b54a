"""Cutting text into documents and shuffling them within bounds."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from awqkit.calibration.documents import (
    LONGEST_DOCUMENT,
    PASSAGE_CHARACTERS,
    cut_long,
    passages,
    shuffled,
)


def random_text(length: int, seed: int, *, breaks: str) -> str:
    return "".join(random.Random(seed).choices("abcdefgh你" + breaks, k=length))


def test_passages_are_whole_lines_of_bounded_length() -> None:
    lines = [random_text(80, number, breaks=" ") for number in range(2000)]
    found = list(passages(lines))
    assert "\n".join(found) == "\n".join(lines)
    assert all(len(passage) < 2 * PASSAGE_CHARACTERS + 81 for passage in found)


def test_passages_end_at_blank_lines_where_there_are_some() -> None:
    paragraphs = [random_text(700, number, breaks=" ") for number in range(60)]
    lines = "\n\n".join(paragraphs).split("\n")
    for passage in list(passages(lines))[:-1]:
        assert passage.endswith("\n") and len(passage) < PASSAGE_CHARACTERS + 750


def test_separator_lines_part_documents() -> None:
    lines = ["one", "more", "<|endoftext|>", "two", " <|endoftext|>", "three"]
    assert list(passages(lines)) == ["one\nmore", "two", "three"]


def test_long_documents_are_cut_without_loss() -> None:
    for seed, breaks in enumerate(["", " ", "\n", " \n"]):
        document = random_text(5 * LONGEST_DOCUMENT + 123, seed, breaks=breaks)
        pieces = list(cut_long([document]))
        assert "".join(pieces) == document
        assert all(len(piece) <= LONGEST_DOCUMENT for piece in pieces)
        assert all(piece[-1] in (breaks or piece[-1]) for piece in pieces[:-1])


def test_short_documents_stay_whole_and_blank_ones_go() -> None:
    assert list(cut_long(["a b", "", " \n", "c"])) == ["a b", "c"]


def shuffle(
    documents: Iterator[str] | list[str], seed: int, *, count: int = 10**6, characters: int = 10**9
) -> Iterator[str]:
    return shuffled(documents, seed=seed, max_documents=count, max_characters=characters)


def test_shuffling_keeps_every_document_and_depends_on_the_seed_alone() -> None:
    documents = [str(number) for number in range(500)]
    for bounds in ({}, {"count": 37}, {"characters": 90}):
        first = list(shuffle(documents, 1, **bounds))
        assert sorted(first) == sorted(documents) and first != documents
        assert first == list(shuffle(documents, 1, **bounds))
        assert first != list(shuffle(documents, 2, **bounds))


def test_a_buffer_bounds_what_is_read() -> None:
    read = itertools.count()
    endless = (str(number) * 10 for number in read)
    assert len(list(itertools.islice(shuffle(endless, 0, count=50), 20))) == 20
    assert next(read) <= 50 + 20 + 1
    endless = (f"{number:010d}" for number in read)
    start = next(read)
    assert len(list(itertools.islice(shuffle(endless, 0, characters=300), 20))) == 20
    assert next(read) - start <= 30 + 20 + 3


def test_one_document_larger_than_the_buffer_still_comes() -> None:
    assert sorted(shuffle(["a" * 100, "b" * 100], 0, characters=10)) == ["a" * 100, "b" * 100]
