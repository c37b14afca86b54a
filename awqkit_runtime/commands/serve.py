"""awqkit-runtime serve: a model behind OpenAI's HTTP API."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from awqkit_runtime.commands.console import note, paragraph_errors
from awqkit_runtime.commands.options import engine_options, engine_settings
from awqkit_runtime.errors import ConfigError
from awqkit_runtime.serve.config import TOOL_CALL_PARSERS, ServeConfig

if TYPE_CHECKING:
    from awqkit_runtime.serve.service import Service

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_NAMES = {field.name for field in fields(ServeConfig)}


@click.command()
@click.argument("model")
@click.option(
    "--server-name",
    default=ServeConfig.server_name,
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on; 0.0.0.0 is every interface of this machine.",
)
@click.option(
    "--server-port",
    type=click.IntRange(0, 65535),
    default=ServeConfig.server_port,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--api-keys",
    multiple=True,
    metavar="KEY",
    help="Serve only who sends one of these as a bearer token; may be repeated, or a list with "
    "commas between.",
)
@click.option(
    "--model-name",
    metavar="NAME",
    help="What requests call the model.  [default: the last part of MODEL]",
)
@click.option(
    "--hide-docs", is_flag=True, help="Offer neither the page at / nor the schema behind it."
)
@click.option(
    "--allow-origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let web pages from there use the server; may be repeated, * is all.",
)
@click.option(
    "--tool-call-parser",
    type=click.Choice(TOOL_CALL_PARSERS),
    default=ServeConfig.tool_call_parser,
    show_default=True,
    help="How the model writes calls of tools; auto is what its template and vocabulary show.",
)
@click.option(
    "--deterministic",
    is_flag=True,
    help="Make answers independent of what else is computed, at the price of speed.",
)
@click.option(
    "--max-queued-requests",
    type=click.IntRange(min=0),
    default=ServeConfig.max_queued_requests,
    show_default=True,
    help="Answers that may wait for a place; more get status 429.",
)
@click.option(
    "--request-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=ServeConfig.request_timeout,
    show_default=True,
    metavar="SECONDS",
    help="The longest that an answer may take, waiting included.",
)
@click.option(
    "--max-body-size",
    type=click.IntRange(min=1),
    default=ServeConfig.max_body_size,
    show_default=True,
    metavar="BYTES",
    help="The largest body of a request.",
)
@click.option(
    "--max-choices",
    type=click.IntRange(min=1),
    default=ServeConfig.max_choices,
    show_default=True,
    help="Answers that one request may have: n, times prompts.",
)
@engine_options
@paragraph_errors
def serve(model: str, **options: Any) -> None:
    """Serve MODEL, a folder or hub id, with OpenAI's HTTP API.

    The first Ctrl-C or SIGTERM lets the answers under way end, a second one stops them.
    """
    try:
        from awqkit_runtime.serve.server import run
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Serving needs the package {error.name}, which is not installed. Install awqkit "
            "with its extra: pip install 'awqkit[serve]'."
        ) from error
    config = _config(options)
    if not config.api_keys and config.server_name not in _LOOPBACK:
        note("Whoever reaches this address can use the server; --api-keys would ask for a key.")
    note(f"Loading {model} …")
    run(model, engine=engine_settings(options), config=config, ready=_announce)


def _config(options: dict[str, Any]) -> ServeConfig:
    given = {name: value for name, value in options.items() if name in _NAMES}
    given["api_keys"] = tuple(key for keys in options["api_keys"] for key in keys.split(","))
    return ServeConfig(**given)


def _announce(url: str, service: Service) -> None:
    note(f"{service.model_name} is served at {url}/v1, and described at {url}/")
