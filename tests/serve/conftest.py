"""One server for all tests that only ask it something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.servers import DEMO, Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server(DEMO, "--tool-call-parser", "qwen") as running:
        yield running
