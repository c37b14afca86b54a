"""awqkit-runtime generate: one prompt, one answer."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from awqkit_runtime.commands.console import note, paragraph_errors, say
from awqkit_runtime.commands.model import load_model
from awqkit_runtime.commands.options import engine_options, sampling_options, sampling_params

if TYPE_CHECKING:
    from awqkit_runtime.llm import LLM


@click.command()
@click.argument("model")
@click.option("-p", "--prompt", metavar="TEXT", help="Without it standard input is the prompt.")
@click.option(
    "--chat/--raw",
    "as_chat",
    default=None,
    help="Put the prompt into the model's chat template, or continue it as it is.  "
    "[default: --chat if the model has a template]",
)
@sampling_options
@engine_options
@paragraph_errors
def generate(model: str, prompt: str | None, as_chat: bool | None, **options: Any) -> None:
    """Answer one prompt with MODEL, a folder or hub id.

    The answer goes to standard output as it comes. Where no sampling option is given, --chat does
    as the model's generation_config.json says, and --raw always takes the likeliest token.
    """
    sampling_params(options)
    text = _read_prompt() if prompt is None else prompt
    with load_model(model, options) as llm:
        if as_chat is None:
            as_chat = llm.has_chat_template
        ids = _encode(llm, text, as_chat=as_chat)
        params = sampling_params(options, llm.chat_defaults if as_chat else None)
        with closing(llm.stream_outputs(ids, params)) as outputs:
            for output in outputs:
                say(output.text)
        say("\n")
        done = output.completion
        if done is not None and done.finish_reason == "length":
            note(f"(cut after {len(done.token_ids)} tokens)")


def _read_prompt() -> str:
    if sys.stdin.isatty():
        raise click.UsageError("Give the prompt with -p/--prompt, or on standard input.")
    return sys.stdin.read().removesuffix("\n")


def _encode(llm: LLM, text: str, *, as_chat: bool) -> list[int]:
    if as_chat:
        return llm.encode_chat([{"role": "user", "content": text}])
    return llm.encode(text)
