"""How the commands speak: answers on standard output, everything else on standard error."""

from __future__ import annotations

import functools
import io
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from awqkit_runtime.errors import AwqkitError
from awqkit_runtime.notes import quiet_libraries

if TYPE_CHECKING:
    from awqkit_runtime.engine.plan import MemoryPlan

P = ParamSpec("P")
R = TypeVar("R")

#: The shell's own code for a program that SIGINT ended.
INTERRUPTED = 130


def paragraph_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Prints a user's error as one paragraph and exits with its code, never with a traceback."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        quiet_libraries()
        tolerate_narrow_encodings()
        try:
            return command(*args, **kwargs)
        except AwqkitError as error:
            click.echo(f"Error: {_as_typed(str(error))}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            sys.exit(INTERRUPTED)

    return wrapper


def _as_typed(text: str) -> str:
    """An error's text with settings as the command's options: session_len becomes --session-len."""
    context = click.get_current_context(silent=True)
    for parameter in context.command.params if context is not None else ():
        name, option = parameter.name or "", max(parameter.opts, key=len)
        # A name without an underscore may be a word of the sentence, but not where it begins it.
        place = rf"\b{name}\b" if "_" in name else rf"^{name}(?= is )|\b{name}(?==)"
        if name and option.startswith("--"):
            text = re.sub(rf"(?<!-)(?:{place})", option, text)
    return text


def tolerate_narrow_encodings() -> None:
    """Lets a terminal that lacks a character show a question mark instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextmanager
def working(text: str) -> Iterator[None]:
    """Shows what is going on for as long as it takes; nothing where no one watches."""
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


@contextmanager
def progress_bar(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how far it is, where someone watches. Gives what to call with the parts just done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.advance(task, done)


def note(text: str) -> None:
    """Something that the user should know beside the answer."""
    click.secho(text, err=True, dim=True)


def note_plan(plan: MemoryPlan) -> None:
    """Where the memory will go, in a line."""
    note(plan.line)


def say(piece: str) -> None:
    """Writes a piece of an answer at once.

    On a terminal without control characters, which could move the cursor or change its settings.
    """
    if sys.stdout.isatty():
        piece = "".join(c for c in piece if unicodedata.category(c) != "Cc" or c in "\n\t")
    click.echo(piece, nl=False)
