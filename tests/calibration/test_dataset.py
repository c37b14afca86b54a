"""Rows: exact packing, held-out rows, digests, bounds on the work, and too little text."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit.calibration.dataset import (
    BATCH_CHARACTERS,
    CalibrationRows,
    calibration_rows,
    check_row_sizes,
    encoded_documents,
    token_digest,
)
from awqkit.errors import CalibrationError
from tests.calibration.calibration_tokenizers import CHAT_TEMPLATE, byte_tokenizer

NOVELS = Path(__file__).parents[2] / ".." / "shared" / "corpora" / "novels.jsonl.zst"


def rows_of(path: Path, **changes: Any) -> CalibrationRows:
    settings: dict[str, Any] = {
        "tokenizer": byte_tokenizer(),
        "samples": 4,
        "seqlen": 64,
        "seed": 0,
        "max_length": 2048,
    }
    return calibration_rows(str(path), **{**settings, **changes})


def failure(path: Path, **changes: Any) -> str:
    with pytest.raises(CalibrationError) as caught:
        rows_of(path, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Two hundred documents of 31 to 90 bytes, each of which says which it is in every word."""
    dice = random.Random(3)
    rows = [
        " ".join(f"{number:03d}" for _ in range(dice.randrange(8, 23))) for number in range(200)
    ]
    path = tmp_path / "numbered.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return path


def test_shapes_and_types(numbered: Path) -> None:
    rows = rows_of(numbered, samples=5, seqlen=33, held_out=2)
    assert rows.tokens.shape == (5, 33) and rows.tokens.dtype == torch.int64
    assert rows.held_out.shape == (2, 33) and rows.held_out.dtype == torch.int64
    assert rows.source == "numbered.jsonl"
    assert rows_of(numbered).held_out.shape == (0, 64)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_rows_are_whole_documents_end_to_end(numbered: Path, adds_bos: bool) -> None:
    """Glued together again, the rows are documents of the file without gap or padding."""
    tokenizer = byte_tokenizer(adds_bos=adds_bos)
    rows = rows_of(numbered, tokenizer=tokenizer, samples=20, seqlen=101)
    stream = tokenizer.decode(rows.tokens.flatten().tolist())
    known = {json.loads(line)["text"] for line in numbered.read_text(encoding="utf-8").splitlines()}
    start, used = 0, []
    while start < len(stream):
        if adds_bos:
            assert stream.startswith("<s>", start)
            start += 3
        number = stream[start : start + 3]
        document = next(text for text in known if text.startswith(number))
        assert document.startswith(stream[start : start + len(document)])
        start += len(document)
        used.append(document)
    assert start - len(stream) < len(used[-1])
    assert len(set(used)) == len(used)


def test_held_out_rows_share_no_document_with_the_others(numbered: Path) -> None:
    for seed in range(5):
        rows = rows_of(numbered, samples=7, seqlen=50, held_out=4, seed=seed)
        tokenizer = byte_tokenizer()
        seen = documents_in(tokenizer.decode(rows.tokens.flatten().tolist()))
        held = documents_in(tokenizer.decode(rows.held_out.flatten().tolist()))
        assert seen and held and not seen & held


def documents_in(text: str) -> set[str]:
    """The numbers of the documents, from words that are whole."""
    return {
        text[at : at + 3]
        for at in range(len(text) - 3)
        if text[at + 3] == " " and text[at : at + 3].isdigit()
    }


def test_same_seed_same_rows(numbered: Path) -> None:
    first, again, other = (rows_of(numbered, seed=seed, held_out=2) for seed in (1, 1, 2))
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.held_out, again.held_out)
    assert first.digest == again.digest != other.digest
    assert not torch.equal(first.tokens, other.tokens)


def test_held_out_rows_do_not_change_the_others(numbered: Path) -> None:
    assert rows_of(numbered).digest == rows_of(numbered, held_out=9).digest


def test_digest_covers_type_shape_and_bytes() -> None:
    tokens = torch.randint(0, 1000, (6, 4), generator=torch.Generator().manual_seed(0))
    bytes_of_rows = b"".join(int(value).to_bytes(8, "little") for value in tokens.flatten())
    expected = hashlib.sha256(b"torch.int64 (6, 4)\n" + bytes_of_rows).hexdigest()
    assert token_digest(tokens) == expected
    assert token_digest(tokens.T.contiguous().T) == expected
    assert (
        len({token_digest(t) for t in (tokens, tokens.int(), tokens.reshape(4, 6), tokens + 1)})
        == 4
    )


def test_too_little_text_says_how_much_there_is_and_what_fits(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("x" * 700, encoding="utf-8")
    message = failure(path, samples=8, seqlen=100)
    for word in (
        "short.txt",
        "700 tokens",
        "need 800",
        "--calib-samples 7",
        "--calib-seqlen",
        "self",
    ):
        assert word in message
    assert rows_of(path, samples=7, seqlen=100).tokens.shape == (7, 100)
    assert "less than one row" in failure(path, samples=1, seqlen=701)


def test_short_text_serves_calibration_first(tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text(
        "".join(json.dumps(letter * 100) + "\n" for letter in "abcde"), encoding="utf-8"
    )
    assert rows_of(path, samples=3, seqlen=100, held_out=9).held_out.shape == (2, 100)
    assert rows_of(path, samples=4, seqlen=125, held_out=9).held_out.shape == (0, 125)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"seqlen": 4096}, ["4096", "maximum of 2048", "--calib-seqlen 2048"]),
        ({"seqlen": 7}, ["at least 8"]),
        ({"seqlen": 0}, ["at least 8"]),
        ({"seqlen": -5}, ["at least 8"]),
        ({"samples": 0}, ["--calib-samples", "at least 1"]),
        ({"samples": -1}, ["--calib-samples"]),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_read(
    numbers: dict[str, int], words: list[str]
) -> None:
    message = failure(Path("c4"), **numbers)
    assert all(word in message for word in words)


def test_a_source_that_is_none_is_named_before_numbers_that_cannot_be() -> None:
    assert "ptb.train.txt" in failure(Path("ptb"), seqlen=4096)
    assert "does not exist" in failure(Path("/nowhere/at.txt"), seqlen=4096)


def test_row_sizes_are_checked_for_other_sources_too() -> None:
    check_row_sizes(samples=1, seqlen=2048, max_length=2048)
    with pytest.raises(CalibrationError, match="maximum of 2048"):
        check_row_sizes(samples=1, seqlen=2049, max_length=2048)


def test_self_is_not_a_data_set() -> None:
    assert "sampled from the model" in failure(Path("self"))


def test_chats_begin_with_one_first_token(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}
    path = tmp_path / "chats.jsonl"
    path.write_text((json.dumps(chat) + "\n") * 50, encoding="utf-8")
    tokenizer = byte_tokenizer(adds_bos=True, chat_template=CHAT_TEMPLATE)
    row = rows_of(path, tokenizer=tokenizer, samples=1).tokens[0]
    assert tokenizer.decode(row.tolist()).startswith("<s>[user]hi[assistant]yo<s>[user]hi")


def test_half_surrogates_in_json_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d and \\ud83d\\ude00 and \\u0000"}\n' * 20, encoding="utf-8")
    assert rows_of(path).tokens.shape == (4, 64)


def test_no_more_is_encoded_than_needed() -> None:
    drawn = itertools.count()
    documents = (f"{next(drawn)} " + "x" * 1000 for _ in itertools.repeat(None))
    encoded = encoded_documents(documents, byte_tokenizer())
    taken = sum(len(next(encoded)) for _ in range(10))
    assert taken > 10_000
    assert next(drawn) * 1000 <= BATCH_CHARACTERS + 1000


def test_an_interrupt_comes_through() -> None:
    def interrupted() -> Iterator[str]:
        yield "some text"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(encoded_documents(interrupted(), byte_tokenizer()))


def test_one_endless_line_is_cut_and_not_encoded_whole(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_bytes(b"words and " * 2_000_000)
    start = time.perf_counter()
    rows = rows_of(path, samples=8, seqlen=2048, held_out=2)
    assert rows.held_out.shape == (2, 2048)
    assert time.perf_counter() - start < 10


def test_a_real_archive_of_novels() -> None:
    if not os.path.exists(NOVELS):
        pytest.skip("../shared/corpora/novels.jsonl.zst is not on this machine")
    tokenizer = byte_tokenizer(adds_bos=True)
    tracemalloc.start()
    start = time.perf_counter()
    rows = rows_of(NOVELS, tokenizer=tokenizer, samples=128, seqlen=2048, held_out=8)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows.tokens.shape == (128, 2048) and rows.held_out.shape == (8, 2048)
    text = tokenizer.decode(rows.tokens.flatten().tolist(), skip_special_tokens=True)
    assert " the " in text and text.isprintable() is False
    assert len(set(map(tuple, rows.tokens.tolist()))) == 128
    assert seconds < 30 and peak < 300e6
    print(f"novels: {seconds:.1f} s, {peak / 1e6:.0f} MB")
