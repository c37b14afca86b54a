"""The programs from their first moment: their imports take a second, in which Ctrl-C may come."""

from __future__ import annotations

import signal
import sys
from importlib import import_module

#: The shell's own code for a program that SIGINT ended; awqkit.console has it too, behind torch.
_INTERRUPTED = 128 + signal.SIGINT


def convert() -> None:
    """awqkit-convert."""
    _run("convert")


def inspect() -> None:
    """awqkit-inspect."""
    _run("inspect")


def _run(command: str) -> None:
    try:
        commands = import_module("awqkit.cli")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    getattr(commands, command)()
