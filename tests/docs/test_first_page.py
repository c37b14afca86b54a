"""docs/README.md as its reader runs it, block after block."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks
from tests.free_port import free_port

# Not imported: it takes seconds, and another process needs it.
pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="no Gradio for the page")
BIN = Path(sys.executable).parent
SECONDS = 180


@contextmanager
def running(command: str, address: str) -> Iterator[None]:
    """A command of the page for as long as it is needed, ready once the address answers."""
    program, *arguments = command.split()
    assert program.startswith(".venv/bin/")
    process = subprocess.Popen([BIN / Path(program).name, *arguments], cwd=ROOT)
    try:
        wait_for(address, process)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        assert process.poll() is None and time.monotonic() < deadline
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return


def shell(command: str) -> str:
    done = subprocess.run(
        ["sh", "-e"], input=command, capture_output=True, text=True, timeout=SECONDS, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_of_the_first_page_works() -> None:
    port, page_port = free_port(), free_port()
    server, models, chat, stream, python, webui = (
        block.text.replace("23333", str(port)).strip() for block in blocks("docs/README.md")
    )
    with running(f"{server} --server-port {port}", f"http://127.0.0.1:{port}/health"):
        assert [model["id"] for model in json.loads(shell(models))["data"]] == ["quill"]

        answer = json.loads(shell(chat))["choices"][0]["message"]
        assert answer["role"] == "assistant" and answer["content"].strip()

        events = [line for line in shell(stream).splitlines() if line]
        assert all(event.startswith("data: ") for event in events)
        assert events[-1] == "data: [DONE]" and len(events) > 3

        said = subprocess.run(
            [sys.executable, "-c", python], capture_output=True, text=True, timeout=SECONDS
        )
        assert said.returncode == 0 and said.stdout.strip(), said.stderr

        address = f"http://127.0.0.1:{page_port}"
        with running(f"{webui} --server-port {page_port}", address):
            assert b"gradio" in urllib.request.urlopen(address, timeout=30).read().lower()


def test_commands_of_the_page_are_those_of_the_environment() -> None:
    assert (BIN / "awqkit-runtime").exists() and os.access(BIN / "awqkit-runtime", os.X_OK)
