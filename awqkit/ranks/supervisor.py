"""Work in several processes at once: started, watched and, where one of them fails, ended."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from awqkit.errors import QuantizationError
from awqkit.interrupts import stops_held_back
from awqkit.ranks.child import Done, Failed, Start, Told
from awqkit.ranks.errors import LostRankError

#: Where one process misses another, seconds until the other's own end is no longer awaited.
SECONDS_FOR_THE_CAUSE = 5.0


class WorkerTraceback(Exception):
    """Where an error arose in another process, as its text tells."""


def run_processes(
    count: int,
    work: Callable[[int, Callable[[Any], None]], Any],
    *,
    on_message: Callable[[Any], None],
) -> Any:
    """What `work(rank, tell)` returns in the first of `count` processes, each doing it once.

    work: can be pickled, and can be imported there. on_message: called with what any of them tells.
    Where one raises, dies, or this process is interrupted, all are killed, and that is raised.
    """
    processes: dict[Connection, _Process] = {}
    try:
        for rank in range(count):
            process = _Process(rank, count)
            processes[process.connection] = process
        for process in processes.values():
            process.connection.send(Start(work, process.rank))
        return _watched(processes, on_message)
    finally:
        for process in processes.values():
            process.end()


class _Process:
    def __init__(self, rank: int, count: int) -> None:
        self.rank, self._count = rank, count
        ours, theirs = socket.socketpair()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from awqkit.ranks.child import main; main({theirs.fileno()})"
        )
        with theirs, stops_held_back():
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self.connection = Connection(ours.detach())

    def end(self) -> None:
        """At once: what it writes can be gone on with, however it ends."""
        self._process.kill()
        self._process.wait()
        self.connection.close()

    def death(self) -> QuantizationError:
        """Why it is gone without a word."""
        code = self._process.wait()
        how = f"ended with code {code}"
        if code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        cure = (
            " Where the kernel did that for want of memory, fewer --processes need less of it."
            if code == -signal.SIGKILL
            else ""
        )
        return QuantizationError(
            f"Process {self.rank + 1} of the {self._count} that share the conversion {how}.{cure}"
        )


def _watched(processes: dict[Connection, _Process], on_message: Callable[[Any], None]) -> Any:
    results: dict[int, Any] = {}
    missing: Failed | None = None
    deadline: float | None = None
    while len(results) < len(processes):
        ready = wait(list(processes), None if deadline is None else deadline - time.monotonic())
        if not ready and missing is not None:
            raise missing.error from WorkerTraceback(missing.trace)
        for connection in ready:
            process = processes[connection]  # type: ignore[index]
            try:
                message = process.connection.recv()
            except (EOFError, OSError):
                raise process.death() from None
            if isinstance(message, Told):
                on_message(message.message)
            elif isinstance(message, Done):
                results[process.rank] = message.result
            elif isinstance(message.error, LostRankError):
                # It is another one that can tell why.
                missing, deadline = message, deadline or time.monotonic() + SECONDS_FOR_THE_CAUSE
            else:
                raise message.error from WorkerTraceback(message.trace)
    return results[0]
