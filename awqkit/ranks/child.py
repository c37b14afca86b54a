"""One of the processes of a shared piece of work: does its part, tells its parent, and waits.

Started by the supervisor with a connected socket. It ends when the parent closes that, or is gone.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True)
class Start:
    """work: called with this process's rank and a function that sends the parent a Told."""

    work: Callable[[int, Callable[[Any], None]], Any]
    rank: int


@dataclass(frozen=True)
class Told:
    """Something to pass on while the work goes on."""

    message: Any


@dataclass(frozen=True)
class Done:
    """The work's result."""

    result: Any


@dataclass(frozen=True)
class Failed:
    """error: what the work raised; trace: where, as text."""

    error: BaseException
    trace: str


def main(descriptor: int) -> None:
    """Never returns. Ctrl-C and a supervisor's signal reach the parent too, which decides."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    start: Start = connection.recv()
    if start.rank:
        warnings.simplefilter("ignore")  # the first process says it for all
    released = threading.Thread(target=_end_with_parent, args=(connection,), daemon=True)
    released.start()
    connection.send(_outcome(start, lambda message: connection.send(Told(message))))
    released.join()


def _outcome(start: Start, tell: Callable[[Any], None]) -> Done | Failed:
    try:
        return Done(start.work(start.rank, tell))
    except BaseException as error:  # noqa: BLE001  (the parent raises it)
        trace = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301  (our own)
        except Exception:  # noqa: BLE001  (whatever cannot travel)
            return Failed(RuntimeError(f"{type(error).__name__}: {error}"), trace)
        return Failed(error, trace)


def _end_with_parent(connection: Connection) -> None:
    try:
        connection.recv()
    except (EOFError, OSError):
        sys.stdout.flush()
        os._exit(0)
