"""A server of our own for the page, as a child process that ends with it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from awqkit_runtime.errors import ServerError

HOST = "127.0.0.1"
#: Seconds that a server has to end its answers before it is killed.
STOP_SECONDS = 10.0
POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class OwnServer:
    url: str
    #: Whether it still runs.
    alive: Callable[[], bool]


@contextmanager
def own_server(model: str, options: Sequence[str]) -> Iterator[OwnServer]:
    """Serves a model on a free port of this machine, and is there once that is ready.

    options: of `awqkit-runtime serve`.  ServerError where the server ends before it is ready; the
    reason stands on standard error then.
    """
    port = _free_port()
    command = [sys.executable, "-m", "awqkit_runtime", "serve", model, *options]
    command += ["--server-name", HOST, "--server-port", str(port)]
    with subprocess.Popen(command) as process:
        try:
            _wait_until_ready(process, port)
            yield OwnServer(url=f"http://{HOST}:{port}", alive=lambda: process.poll() is None)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=POLL_SECONDS):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(POLL_SECONDS)
    raise ServerError("The server for the page ended before it was ready; its reason stands above.")
