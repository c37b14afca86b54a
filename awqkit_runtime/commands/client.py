"""awqkit-runtime client: a conversation in the terminal with a model on a server."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import click

from awqkit_runtime.commands.console import note, paragraph_errors, say
from awqkit_runtime.commands.conversation import converse
from awqkit_runtime.commands.options import given_sampling, sampling_options
from awqkit_runtime.errors import ServerError
from awqkit_runtime.remote import RemoteModel


@click.command()
@click.argument("url")
@click.option("--model", metavar="NAME", help="Model to talk to; without it the server's first.")
@click.option("--api-key", metavar="KEY", help="Where the server wants one.")
@click.option("--system", metavar="TEXT", help="System message at the start of the conversation.")
@sampling_options
@paragraph_errors
def client(
    url: str, model: str | None, api_key: str | None, system: str | None, **options: Any
) -> None:
    """Chat with a model behind URL, any OpenAI-compatible server.

    URL is like http://127.0.0.1:23333, with or without /v1. Sampling options that are not given
    are the server's to choose. Each line is a message; lines can also be piped in. /help lists
    the commands of the conversation.
    """
    sampling = given_sampling(options)
    remote = RemoteModel(url, api_key=api_key, model=model)
    note(f"{remote.name} at {remote.base_url}. /help lists the commands.")
    converse(RemoteConversation(remote, sampling, system))


class RemoteConversation:
    """Messages so far, and the server that answers them."""

    def __init__(self, remote: RemoteModel, sampling: dict[str, Any], system: str | None) -> None:
        self._remote = remote
        self._sampling = sampling
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._messages: list[dict[str, str]] = []

    def reset(self) -> None:
        self._messages = []

    def answer(self, text: str) -> None:
        """Streams the answer to a message. A message that got no answer is not kept."""
        question = {"role": "user", "content": text}
        answer = self._stream([*self._system, *self._messages, question])
        if answer:
            self._messages += [question, {"role": "assistant", "content": answer}]

    def _stream(self, messages: list[dict[str, str]]) -> str:
        """Shows the answer and returns it; Ctrl-C ends it early, an error is told and survived."""
        pieces: list[str] = []
        finish_reason = None
        try:
            with closing(self._remote.stream(messages, self._sampling)) as stream:
                for piece in stream:
                    pieces.append(piece.text)
                    say(piece.text)
                    finish_reason = piece.finish_reason or finish_reason
            say("\n")
            if finish_reason == "length":
                note("(cut: the server's limit or --max-tokens was reached)")
        except KeyboardInterrupt:
            say("\n")
            note("(stopped)")
        except ServerError as error:
            say("\n" if pieces else "")
            note(f"({error})")
        return "".join(pieces)
