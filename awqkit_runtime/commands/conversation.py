"""The prompt of a conversation: lines typed or piped, and the commands among them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Protocol

import click

from awqkit_runtime.commands.console import note

PROMPT = ">>> "
HELP = """/reset   forget the conversation and start a new one
/exit    leave (so do Ctrl-D, and Ctrl-C at the prompt)
/help    this text
Ctrl-C stops an answer and keeps the conversation."""


class Conversation(Protocol):
    """Messages so far, and whoever answers them."""

    def answer(self, text: str) -> None:
        """Shows the answer to a message as it comes."""

    def reset(self) -> None:
        """Forgets the messages."""


def converse(conversation: Conversation) -> None:
    """Answers line after line until the user leaves or the input ends."""
    for line in read_lines():
        if line == "/exit":
            break
        if line == "/help":
            note(HELP)
        elif line == "/reset":
            conversation.reset()
            note("(a new conversation)")
        elif re.fullmatch(r"/[a-z]+", line):
            note(f"There is no command {line}; /help lists those there are.")
        elif line:
            conversation.answer(line)


def read_lines() -> Iterator[str]:
    """What the user types until Ctrl-D or Ctrl-C, or the lines of a file or pipe."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.strip()
        return
    enable_line_editing()
    while True:
        try:
            line = input(PROMPT)
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        yield line.strip()


def enable_line_editing() -> None:
    """Arrow keys and history at the prompt, where Python has them."""
    try:
        import readline  # noqa: F401
    except ImportError:
        # Windows' console brings its own.
        return
