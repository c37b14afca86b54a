"""Local files: every form that is read, and every way in which one can be broken."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from awqkit.calibration.text_files import file_records, split_ending, text_file_lines
from awqkit.errors import CalibrationError

zstandard = pytest.importorskip("zstandard")


def random_records(count: int, seed: int) -> list[dict[str, Any]]:
    letters = random.Random(seed)
    alphabet = "abc äöü 你好 🙂 \n\t\"\\'\u2028"
    return [
        {"text": "".join(letters.choices(alphabet, k=letters.randrange(1, 400))), "id": number}
        for number in range(count)
    ]


def json_lines(records: list[Any], *, ensure_ascii: bool = False) -> bytes:
    lines = (json.dumps(record, ensure_ascii=ensure_ascii) for record in records)
    return "".join(line + "\n" for line in lines).encode()


def zstd_in_frames(content: bytes) -> bytes:
    """As parallel compressors write it: several frames, and one that is to be skipped."""
    third = len(content) // 3
    parts = [content[:third], content[third : 2 * third], content[2 * third :]]
    skippable = (0x184D2A50).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"note"
    return skippable.join(zstandard.ZstdCompressor().compress(part) for part in parts)


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("a.jsonl", json_lines),
        ("a.jsonl", lambda rows: json_lines(rows).replace(b"\n", b"\r\n\r\n")),
        ("a.jsonl", lambda rows: json_lines(rows).removesuffix(b"\n")),
        ("a.jsonl", lambda rows: b"\xef\xbb\xbf" + json_lines(rows)),
        ("A.JSONL.ZST", lambda rows: zstandard.compress(json_lines(rows))),
        ("v1.2.jsonl.zst", lambda rows: zstd_in_frames(json_lines(rows))),
        ("a.jsonl.gz", lambda rows: gzip.compress(json_lines(rows))),
        ("a.json", lambda rows: json.dumps(rows, indent=2).encode()),
        ("a.json", json_lines),
        ("a.json.gz", lambda rows: gzip.compress(json_lines(rows))),
        ("a.json", lambda rows: json.dumps({"version": 1, "data": rows}).encode()),
    ],
)
def test_every_form_gives_the_records(
    tmp_path: Path, name: str, encode: Callable[[list[Any]], bytes]
) -> None:
    # Enough of them that lines cross the pieces in which a file is read.
    records = random_records(3000, seed=len(name))
    path = tmp_path / name
    path.write_bytes(encode(records))
    assert list(file_records(path)) == records


@pytest.mark.parametrize(
    ("content", "records"),
    [
        (["one", "two"], ["one", "two"]),
        ({"text": "one"}, [{"text": "one"}]),
        ({"text": ["one", "two"], "id": [1, 2]}, ["one", "two"]),
        (
            {"train": [{"text": "one"}], "test": [{"text": "two"}]},
            [{"text": "one"}, {"text": "two"}],
        ),
        ({"messages": [{"role": "user"}]}, [{"messages": [{"role": "user"}]}]),
        ("one", ["one"]),
        ([], []),
    ],
)
def test_json_wrappings(tmp_path: Path, content: Any, records: list[Any]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert list(file_records(path)) == records


def test_parquet_reads_the_text_column_alone(tmp_path: Path) -> None:
    records = random_records(1000, seed=5)
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_bytes(records))
    read = list(file_records(path))
    assert read == [{"text": record["text"]} for record in records]


def test_parquet_of_conversations(tmp_path: Path) -> None:
    records = [{"messages": [{"role": "user", "content": f"hello {n}"}]} for n in range(5)]
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_bytes(records))
    assert list(file_records(path)) == records


@pytest.mark.parametrize("ending", [".txt", ".txt.zst", ".txt.gz"])
def test_text_lines(tmp_path: Path, ending: str) -> None:
    lines = ["Wörter und", "", "  你好 ", *(f"line {n}" for n in range(50_000))]
    content = "\r\n".join(lines).encode()
    compress = {".txt": bytes, ".txt.zst": zstandard.compress, ".txt.gz": gzip.compress}[ending]
    path = tmp_path / f"a{ending}"
    path.write_bytes(compress(content))
    assert list(text_file_lines(path)) == lines


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", (".txt", "")),
        ("a.JSONL.gz", (".jsonl", ".gz")),
        ("a.parquet", (".parquet", "")),
        ("a.parquet.zst", ("", "")),
        ("a.zst", ("", "")),
        ("a.csv", ("", "")),
        ("txt", ("", "")),
    ],
)
def test_split_ending(name: str, expected: tuple[str, str]) -> None:
    assert split_ending(Path("folder.txt") / name) == expected


GOOD = json_lines([{"text": "good"}] * 3)
# Text that does not compress to nothing, so that half of the archive is half of the text.
LONG = json_lines(random_records(2000, seed=1))
BROKEN = {
    "bad line": ("a.jsonl", GOOD + b'{"text": "bad\n' + GOOD, ["line 4", "not JSON"]),
    "bad line in .json": ("a.json", GOOD + b"{oops}\n", ["line 4", "not JSON"]),
    "bad json": ("a.json", b'[{"text": "a"},\n {"text" "b"}]', ["line 2 column", "not JSON"]),
    "deep json": ("a.json", b"[" * 200_000, ["not JSON"]),
    "deep line": ("a.jsonl", b"[" * 200_000, ["line 1", "not JSON"]),
    "latin-1": (
        "a.jsonl",
        GOOD + '{"text": "caf\u00e9"}\n'.encode("latin-1"),
        ["line 4", "UTF-8", "0xe9"],
    ),
    "latin-1 json": ("a.json", '["caf\u00e9"]'.encode("latin-1"), ["UTF-8", "0xe9"]),
    "utf-16": ("a.jsonl", '{"text": "a"}'.encode("utf-16"), ["UTF-16", "UTF-8"]),
    "not zstd": ("a.jsonl.zst", GOOD, ["decompressed"]),
    "truncated zstd": ("a.jsonl.zst", zstandard.compress(LONG)[:-1000], ["decompressed", "ends"]),
    "damaged zstd": (
        "a.jsonl.zst",
        zstandard.ZstdCompressor(write_checksum=True).compress(LONG)[:-1] + b"?",
        ["decompressed"],
    ),
    "not gzip": ("a.jsonl.gz", GOOD, ["decompressed"]),
    "truncated gzip": ("a.jsonl.gz", gzip.compress(LONG)[:-1000], ["decompressed"]),
    "damaged gzip": ("a.jsonl.gz", gzip.compress(GOOD)[:12] + b"\xff" * 30, ["decompressed"]),
    "not parquet": ("a.parquet", GOOD, ["Parquet"]),
    "truncated parquet": ("a.parquet", parquet_bytes([{"text": "a"}])[:-20], ["Parquet"]),
    "parquet with a bad footer": ("a.parquet", b"PAR1" + b"\x07" * 60 + b"PAR1", ["Parquet"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_say_where_and_what(tmp_path: Path, case: str) -> None:
    name, content, words = BROKEN[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CalibrationError) as caught:
        list(file_records(path))
    for word in (*words, str(path)):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n" * 10 + b"caf\xe9\n")
    with pytest.raises(CalibrationError, match=r"line 11 of .* 0xe9 at offset 3"):
        list(text_file_lines(path))


def test_any_damage_is_a_clear_error_or_harmless(tmp_path: Path) -> None:
    """Flipped and missing bytes anywhere in a file end in records or in our own error."""
    dice = random.Random(7)
    rows = random_records(40, seed=8)
    files = {
        "a.jsonl": json_lines(rows),
        "a.json": json.dumps(rows).encode(),
        "a.jsonl.zst": zstandard.compress(json_lines(rows)),
        "a.jsonl.gz": gzip.compress(json_lines(rows)),
        "a.parquet": parquet_bytes(rows),
    }
    for name, content in files.items():
        path = tmp_path / name
        for _ in range(60):
            damaged = bytearray(content)
            for _ in range(dice.randrange(1, 4)):
                damaged[dice.randrange(len(damaged))] = dice.randrange(256)
            path.write_bytes(
                damaged[: dice.randrange(1, len(damaged))] if dice.random() < 0.3 else damaged
            )
            with contextlib.suppress(CalibrationError):
                list(file_records(path))


def test_a_file_is_read_no_further_than_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(random_records(20_000, seed=2)) + b"not JSON at all\n")
    records = file_records(path)
    assert [next(records)["id"] for _ in range(10)] == list(range(10))
    records.close()


def test_zstd_needs_its_package_only_where_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.zst"
    for path in (plain, packed):
        path.write_bytes(b'{"text": "one"}\n')
    assert list(file_records(plain)) == [{"text": "one"}]
    with pytest.raises(CalibrationError, match="pip install zstandard"):
        list(file_records(packed))
