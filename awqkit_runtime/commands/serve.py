"""awqkit-runtime serve: a model behind OpenAI's HTTP API."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from awqkit_runtime.commands.console import note, paragraph_errors
from awqkit_runtime.commands.options import engine_options, engine_settings
from awqkit_runtime.errors import ConfigError

if TYPE_CHECKING:
    from awqkit_runtime.serve.service import Service


@click.command()
@click.argument("model")
@click.option(
    "--server-name",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on; 0.0.0.0 is every interface of this machine.",
)
@click.option(
    "--server-port",
    type=click.IntRange(0, 65535),
    default=23333,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@engine_options
@paragraph_errors
def serve(model: str, **options: Any) -> None:
    """Serve MODEL, a folder or hub id, with OpenAI's HTTP API."""
    try:
        from awqkit_runtime.serve.server import run
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Serving needs the package {error.name}, which is not installed. Install awqkit "
            "with its extra: pip install 'awqkit[serve]'."
        ) from error
    from awqkit_runtime.serve.config import ServeConfig

    config = ServeConfig(server_name=options["server_name"], server_port=options["server_port"])
    note(f"Loading {model} …")
    sys.exit(run(model, engine=engine_settings(options), config=config, ready=_announce))


def _announce(url: str, service: Service) -> None:
    note(
        f"{service.model_name} at {url}: {url}/v1 for clients, {url}/ for its description. "
        "Ctrl-C ends it when all answers are given, a second one at once."
    )
