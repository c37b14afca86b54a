"""How the commands speak: results on standard output, everything else on standard error."""

from __future__ import annotations

import functools
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ParamSpec, TypeVar

from awqkit.errors import AwqkitError

P = ParamSpec("P")
R = TypeVar("R")

#: The shell's own codes for a program that SIGINT or SIGTERM ended.
INTERRUPTED, TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: the machine or a scheduler wants the process to end."""


def paragraph_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print a user's error as one paragraph and exit with its code, never with a traceback."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        quiet_libraries()
        try:
            with _termination_as_exception():
                return command(*args, **kwargs)
        except AwqkitError as error:
            print(" ".join([f"Error: {error}", *_notes(error)]), file=sys.stderr)
            sys.exit(error.exit_code)
        except Terminated as stop:
            print(" ".join(["\nTerminated.", *_notes(stop)]), file=sys.stderr)
            sys.exit(TERMINATED)
        except KeyboardInterrupt as stop:
            print(" ".join(["\nInterrupted.", *_notes(stop)]), file=sys.stderr)
            sys.exit(INTERRUPTED)

    return wrapper


@contextmanager
def _termination_as_exception() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that files are closed and folders removed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


def quiet_libraries() -> None:
    """Keep other libraries' advice to their developers off the user's screen."""
    warnings.formatwarning = _as_note
    warnings.filterwarnings("ignore", module=r"(torch|transformers|datasets|huggingface_hub)\b.*")


def _as_note(message: Warning | str, *place: object, **line: object) -> str:
    """A warning as a sentence for the user, who has no use for the place in our source."""
    return f"Note: {message}\n"


def human_bytes(count: float) -> str:
    """4096 → "4.0 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
