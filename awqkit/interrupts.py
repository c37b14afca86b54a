"""Signals that wait for a better moment."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

#: Ctrl-C, and what a scheduler sends.
STOPS = {signal.SIGINT, signal.SIGTERM}


@contextmanager
def stops_held_back() -> Iterator[None]:
    """What would stop this process does so behind the context; a process or thread that is started
    within it never sees these signals."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
