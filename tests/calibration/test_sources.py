"""What a `--calib-dataset` may name, and what is said about names that lead nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from awqkit.calibration.hub_text import NAMED_DATASETS, HubDataset, parse_hub_id
from awqkit.calibration.sources import KNOWN_NAMES, open_source
from awqkit.errors import AwqkitError, CalibrationError


def failure(source: str) -> str:
    with pytest.raises(CalibrationError) as caught:
        list(open_source(source, render_chat=lambda _: "").documents(0))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts(path: Path, seed: int = 0) -> list[str]:
    return list(open_source(str(path), render_chat=lambda _: "").documents(seed))


def test_calibration_errors_are_shown_like_all_others() -> None:
    assert issubclass(CalibrationError, AwqkitError) and CalibrationError.exit_code == 1


@pytest.mark.parametrize(
    ("source", "guess"),
    [("pilevla", "pileval"), ("Pileval", "pileval"), ("wikitext", "wikitext2"), ("slef", "self")],
)
def test_unknown_names_get_a_guess_and_the_list(source: str, guess: str) -> None:
    message = failure(source)
    assert f"Did you mean {guess}?" in message
    assert "pileval, c4, wikitext2, self" in message and "org/name" in message


@pytest.mark.parametrize(
    "source", ["", " ", "xyzzy", "a b/c", "org/name:a:b:c", "org/", "\0", "ü/ü"]
)
def test_nonsense_is_an_unknown_name(source: str) -> None:
    assert ", ".join(KNOWN_NAMES) in failure(source)


@pytest.mark.parametrize("source", ["ptb", "ptb-text-only/ptb_text_only"])
def test_ptb_names_the_file_that_is_taken_instead(source: str) -> None:
    message = failure(source)
    assert "--calib-dataset path/to/ptb.train.txt" in message
    assert "loader script" in message and "pileval" in message and "self" in message


def test_ptb_as_the_plain_file(tmp_path: Path) -> None:
    lines = [f" sentence {number} of <unk> words " for number in range(1000)]
    path = tmp_path / "ptb.train.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = texts(path)
    assert len(found) > 3
    assert sorted("\n".join(found).split("\n")) == sorted([*lines])


def test_urls_are_refused_with_what_to_do() -> None:
    assert "download" in failure("https://example.org/data/pile.jsonl.zst")


@pytest.mark.parametrize("name", ["pile.jsonl", "sub/pile.jsonl", "pile.txt.zst"])
def test_missing_files(tmp_path: Path, name: str) -> None:
    message = failure(str(tmp_path / name))
    assert "does not exist" in message and ", ".join(KNOWN_NAMES) in message


def test_a_missing_file_gets_a_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "novels.jsonl").write_text("{}", encoding="utf-8")
    assert f"Did you mean {tmp_path / 'novels.jsonl'}?" in failure(str(tmp_path / "novel.jsonl"))
    monkeypatch.chdir(tmp_path)
    assert "Did you mean novels.jsonl?" in failure("novls.jsonl")


def test_the_home_of_nobody() -> None:
    assert "does not exist" in failure("~nobody-of-that-name/a.txt")


def test_a_path_that_is_too_long() -> None:
    assert "does not exist" in failure("/" + "x" * 5000 + ".txt")


def test_a_folder_names_the_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "val.jsonl.zst").write_bytes(b"x")
    (tmp_path / "README.md").write_bytes(b"x")
    message = failure(str(tmp_path))
    assert "is a folder" in message and "It holds val.jsonl.zst" in message


def test_an_unknown_ending_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x")
    assert ".jsonl.zst" in failure(str(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b""),
        ("a.txt", b" \n\r\n\t"),
        ("a.jsonl", b""),
        ("a.jsonl", b"\n\n"),
        ("a.jsonl", b'{"text": ""}\n{"text": " "}\n'),
        ("a.json", b"[]"),
        ("a.jsonl", b'{"text": null}\n'),
        ("a.jsonl.zst", b""),
        ("a.parquet", b""),
    ],
)
def test_empty_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = failure(str(path))
    assert str(path) in message and "empty" in message and "self" in message


def test_a_json_file_of_white_space_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b" \n")
    assert "not JSON" in failure(str(tmp_path / "a.json"))


def test_a_file_in_the_working_folder_and_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org/name.txt").write_text("hello", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("org/name.txt", "./org/name.txt", "~/org/name.txt"):
        assert texts(Path(source)) == ["hello"]
        description = open_source(source, render_chat=lambda _: "").description
        assert description == "name.txt"  # no path of this machine goes into a checkpoint


def test_records_are_shuffled_by_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [f"document {number}" for number in range(300)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    assert texts(path, 1) == texts(path, 1) != texts(path, 2)
    assert sorted(texts(path, 1)) == sorted(rows)


def test_named_data_sets() -> None:
    pile, c4, wiki = (NAMED_DATASETS[name] for name in ("pileval", "c4", "wikitext2"))
    assert (pile.repo, pile.config, pile.split) == (
        "mit-han-lab/pile-val-backup",
        None,
        "validation",
    )
    assert (c4.repo, c4.config, c4.split) == ("allenai/c4", "en", "validation")
    assert (wiki.repo, wiki.config, wiki.split) == (
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        "train",
    )


@pytest.mark.parametrize(
    ("source", "dataset"),
    [
        ("org/name", HubDataset(repo="org/name")),
        ("org/name:en", HubDataset(repo="org/name", config="en")),
        ("org/na.me:en:test", HubDataset(repo="org/na.me", config="en", split="test")),
        ("org/name::test", HubDataset(repo="org/name", split="test")),
        ("allenai/c4", NAMED_DATASETS["c4"]),
        ("allenai/c4:de", HubDataset(repo="allenai/c4", config="de")),
        ("name", None),
        ("a/b/c", None),
        ("../name", None),
        ("org/name:", HubDataset(repo="org/name")),
        ("org/name::", None),
    ],
)
def test_hub_ids(source: str, dataset: HubDataset | None) -> None:
    assert parse_hub_id(source) == dataset
