"""Reading from a hub, against one on this machine and against none at all."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.calibration import fake_hub
from tests.calibration.fake_hub import FakeHub, Repository, serving

zstandard = pytest.importorskip("zstandard")

ROOT = Path(__file__).parents[2]
Outcomes = dict[str, dict[str, Any]]


def read(names: Iterable[str], home: Path, **environment: str) -> Outcomes:
    """Reads two documents of each data set in a process with a cache of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    result = subprocess.run(
        [sys.executable, fake_hub.__file__, *(f"{name}=2" for name in names)],
        env={**inherited, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return {outcome["name"]: outcome for outcome in json.loads(result.stdout)}


def noise(count: int) -> str:
    return random.Random(count).randbytes(count).hex()


def json_lines(count: int, word: str) -> bytes:
    rows = ({"text": f"{word} {number} {noise(400)}", "meta": {}} for number in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


WIKITEXT_CARD = b"""---
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - split: test
    path: wikitext-2-raw-v1/test-*
  - split: train
    path: wikitext-2-raw-v1/train-*
- config_name: other
  data_files: other/*
---
"""
REPOSITORIES = {
    "mit-han-lab/pile-val-backup": Repository(
        {"README.md": b"# Pile", "val.jsonl.zst": zstandard.compress(json_lines(500, "pile"))}
    ),
    "Salesforce/wikitext": Repository(
        {
            "README.md": WIKITEXT_CARD,
            "wikitext-2-raw-v1/train-0.parquet": parquet(
                [{"text": "" if row % 2 else f" = {row} = \n"} for row in range(4000)]
            ),
            "wikitext-2-raw-v1/test-0.parquet": parquet([{"text": "test row"}]),
            "other/part.parquet": parquet([{"text": "other row"}]),
        }
    ),
    "org/chats": Repository(
        {
            "data/train-0.jsonl": b'{"messages": [{"role": "user", "content": "learnt"}]}\n',
            "data/test-0.jsonl": b'{"messages": [{"role": "user", "content": "tested"}]}\n',
        }
    ),
    "org/large": Repository({"train.jsonl": json_lines(100_000, "large")}),
    "org/gated": Repository(status=403, error_code="GatedRepo"),
    "org/busy": Repository(status=503),
    "org/disabled": Repository(disabled=True),
    "org/script": Repository({"script.py": b"raise SystemExit('this must never run')"}),
    "org/vanished": Repository({"train.jsonl": b"{}"}, missing_content=True),
    "org/bare": Repository({"README.md": b"nothing else"}),
    "org/broken": Repository({"train.jsonl": json_lines(3, "x") + b"{oops\n"}),
    "org/table": Repository({"train.parquet": b"PAR1 nonsense PAR1"}),
    "org/card": Repository({"README.md": b"---\nconfigs: [{\n---\n", "train.jsonl": b"{}"}),
    "org/textless": Repository({"train.jsonl": b'{"stars": 1, "title": "x"}\n'}),
}
ANSWERS = {
    "pileval": "",
    "wikitext2": "",
    "Salesforce/wikitext:other": "",
    "org/chats": "",
    "org/chats::test": "",
    "org/large": "",
    "Salesforce/wikitext:nope": "wikitext-2-raw-v1",
    "Salesforce/wikitext:other:dev": "no split dev; it has train",
    "org/gated": "is gated",
    "org/busy": "HTTP status 503",
    "org/disabled": "was withdrawn",
    "org/script": "Python script",
    "org/vanished": "withdrawn or moved",
    "org/bare": "no data files",
    "org/broken": "cannot be read",
    "org/table": "cannot be read",
    "org/card": "cannot be read",
    "org/textless": "stars (int), title (str)",
    "org/unheard-of": "not on the hub",
}


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with serving(REPOSITORIES) as running:
        yield running


@pytest.fixture(scope="module")
def outcomes(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return read(ANSWERS, tmp_path_factory.mktemp("home"), HF_ENDPOINT=hub.url)


def test_documents_come_from_the_right_split(outcomes: Outcomes) -> None:
    assert all(text.startswith("pile ") for text in outcomes["pileval"]["texts"])
    assert outcomes["Salesforce/wikitext:other"]["texts"] == ["other row"]
    assert outcomes["org/chats"]["texts"] == ["learnt"]
    assert outcomes["org/chats::test"]["texts"] == ["tested"]


def test_rows_that_are_lines_are_joined_to_passages(outcomes: Outcomes) -> None:
    first = outcomes["wikitext2"]["texts"][0].split("\n")
    numbers = [int(line.strip(" =")) for line in first]
    assert len(numbers) > 100 and numbers == list(range(numbers[0], numbers[-1] + 1, 2))


@pytest.mark.parametrize("name", [name for name, words in ANSWERS.items() if words])
def test_refusals_say_what_is_wrong(outcomes: Outcomes, name: str) -> None:
    message = outcomes[name]["error"]
    assert ANSWERS[name] in message and "\n" not in message
    assert outcomes[name]["seconds"] < 30


def test_no_more_is_downloaded_than_used(hub: FakeHub, outcomes: Outcomes) -> None:
    size = len(REPOSITORIES["org/large"].files["train.jsonl"])
    assert len(outcomes["org/large"]["texts"]) == 2
    assert 0 < hub.bytes_sent["org/large"] < size / 2


def test_no_network_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but nobody listens
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        found = read(["pileval", "org/name"], tmp_path, HF_ENDPOINT=nowhere)
    for outcome in found.values():
        for word in ("network", nowhere, "HF_ENDPOINT", ".jsonl.zst", "--calib-dataset self"):
            assert word in outcome["error"]
        assert outcome["seconds"] < 20


def test_offline_mode_is_named_and_asks_nobody(tmp_path: Path) -> None:
    with serving(REPOSITORIES) as hub:
        found = read(["c4", "org/name"], tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
        assert not [request for request in hub.requests if "datasets" in request]
    for outcome in found.values():
        for word in ("HF_HUB_OFFLINE", "HF_ENDPOINT", ".jsonl.zst", "--calib-dataset self"):
            assert word in outcome["error"]
        assert outcome["seconds"] < 20
