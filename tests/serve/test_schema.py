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
#: Seconds; far above what the longest answer takes.
HANG = 60


@pytest.fixture(scope="module")
def short_answers() -> Iterator[Server]:
    """Every answer that a schema allows is soon over."""
    with Server(DEMO, "--session-len", "64", "--max-choices", "4") as server:
        yield server


def fuzz(server: Server, *, examples: int, seconds: int, phases: str) -> int:
    """Runs Schemathesis; the number of cases."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("run", f"{server.url}/openapi.json", "--checks", ",".join(CHECKS)),
        *("--max-examples", str(examples), "--phases", phases, "--seed", "7"),
        *("--request-timeout", str(HANG), "--mode", "all", "--no-color"),
        *("--generation-database", "none", "--continue-on-failure"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert server.quiet()
    found = re.search(r"(\d+) generated", done.stdout)
    assert found is not None, done.stdout[-2000:]
    return int(found[1])


def test_some_cases(short_answers: Server) -> None:
    assert fuzz(short_answers, examples=4, seconds=200, phases="fuzzing") >= 20


@pytest.mark.slow
def test_thousands_of_cases(short_answers: Server) -> None:
    cases = fuzz(short_answers, examples=500, seconds=1700, phases="coverage,fuzzing")
    assert cases >= 2000
