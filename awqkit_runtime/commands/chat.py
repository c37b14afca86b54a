"""awqkit-runtime chat: a conversation in the terminal."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from awqkit_runtime.commands.console import note, note_plan, paragraph_errors, say
from awqkit_runtime.commands.conversation import converse
from awqkit_runtime.commands.model import load_model
from awqkit_runtime.commands.options import engine_options, sampling_options, sampling_params

if TYPE_CHECKING:
    from awqkit_runtime.engine.sampling_params import SamplingParams
    from awqkit_runtime.llm import LLM


@click.command()
@click.argument("model")
@click.option("--system", metavar="TEXT", help="System message at the start of the conversation.")
@sampling_options
@engine_options
@paragraph_errors
def chat(model: str, system: str | None, **options: Any) -> None:
    """Chat with MODEL, a folder or hub id.

    Where no sampling option is given, the model's generation_config.json decides. Each line is a
    message; lines can also be piped in. /help lists the commands of the conversation.
    """
    sampling_params(options)
    with load_model(model, options, announce=note_plan) as llm:
        conversation = LocalConversation(llm, sampling_params(options, llm.chat_defaults), system)
        note(f"{model}: {llm.session_len} tokens of context. /help lists the commands.")
        converse(conversation)


class LocalConversation:
    """Messages so far, and the model that answers them."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        """Fails at once where the model has no chat template or takes no system message."""
        self._llm = llm
        self._params = params
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._messages: list[dict[str, str]] = []
        llm.encode_chat([*self._system, {"role": "user", "content": "?"}])

    def reset(self) -> None:
        self._messages = []

    def answer(self, text: str) -> None:
        """Streams the answer to a message. A message that finds no room is not kept."""
        question = {"role": "user", "content": text}
        ids = self._llm.encode_chat([*self._system, *self._messages, question])
        if len(ids) >= self._llm.session_len:
            note(
                f"(the conversation would have {len(ids)} tokens, the context holds "
                f"{self._llm.session_len}; /reset starts a new one, --session-len may allow more)"
            )
            return
        answer = self._stream(ids)
        if answer:
            self._messages += [question, {"role": "assistant", "content": answer}]

    def _stream(self, ids: list[int]) -> str:
        """Shows the answer and returns it; Ctrl-C ends it early."""
        pieces: list[str] = []
        try:
            with closing(self._llm.stream_outputs(ids, self._params)) as outputs:
                for output in outputs:
                    pieces.append(output.text)
                    say(output.text)
            say("\n")
            if output.completion is not None and output.completion.finish_reason == "length":
                self._explain_cut(len(ids) + len(output.completion.token_ids))
        except KeyboardInterrupt:
            say("\n")
            note("(stopped)")
        return "".join(pieces)

    def _explain_cut(self, num_tokens: int) -> None:
        if num_tokens >= self._llm.session_len:
            note(f"(the context of {self._llm.session_len} tokens is full; /reset starts anew)")
        else:
            note(f"(cut after {self._params.max_tokens} tokens; --max-tokens allows more)")
