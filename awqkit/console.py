"""How the commands speak: results on standard output, everything else on standard error."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from awqkit.errors import AwqkitError

P = ParamSpec("P")
R = TypeVar("R")

#: The shell's own code for a program that SIGINT ended.
INTERRUPTED = 130


def paragraph_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print a user's error as one paragraph and exit with its code, never with a traceback."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        quiet_libraries()
        try:
            return command(*args, **kwargs)
        except AwqkitError as error:
            print(f"Error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            print("\nInterrupted.", file=sys.stderr)
            sys.exit(INTERRUPTED)

    return wrapper


def quiet_libraries() -> None:
    """Keep other libraries' advice to their developers off the user's screen."""
    warnings.filterwarnings("ignore", module=r"(torch|transformers|datasets|huggingface_hub)\b.*")


def human_bytes(count: float) -> str:
    """4096 → "4.0 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
