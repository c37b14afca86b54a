"""Schemathesis against the server's own description: no 5xx, no hang, answers as described."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.servers import DEMO, Server

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
#: Seconds; far above what the longest answer takes, and what a run takes.
HANG, SECONDS = 60, 900
#: Schemathesis keeps what it sends, so that a run of thousands of cases would fill the memory, and
#: so would its phase "coverage", which makes the longest lists that are allowed.
RUNS, EXAMPLES = 5, 100


@pytest.fixture(scope="module")
def short_answers() -> Iterator[Server]:
    """Every answer that a schema allows is soon over."""
    with Server(DEMO, "--session-len", "64", "--max-choices", "4") as server:
        yield server


def fuzz(server: Server, *, examples: int, seed: int = 7) -> int:
    """Runs Schemathesis; the number of cases."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("run", f"{server.url}/openapi.json", "--checks", ",".join(CHECKS)),
        *("--max-examples", str(examples), "--phases", "fuzzing", "--seed", str(seed)),
        *("--request-timeout", str(HANG), "--mode", "all", "--no-color"),
        *("--generation-database", "none", "--continue-on-failure"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert server.quiet()
    found = re.search(r"(\d+) generated", done.stdout)
    assert found is not None, done.stdout[-2000:]
    return int(found[1])


def test_some_cases(short_answers: Server) -> None:
    assert fuzz(short_answers, examples=4) >= 20


@pytest.mark.slow
def test_thousands_of_cases(short_answers: Server) -> None:
    cases = sum(fuzz(short_answers, examples=EXAMPLES, seed=seed) for seed in range(RUNS))
    assert cases >= 2000
