"""awqkit-runtime webui: a chat page in the browser."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import click

from awqkit_runtime.commands.console import note, paragraph_errors
from awqkit_runtime.commands.options import engine_arguments, engine_options
from awqkit_runtime.errors import ConfigError, ServerError
from awqkit_runtime.remote import RemoteModel

if TYPE_CHECKING:
    import gradio

    from awqkit_runtime.webui.own_server import OwnServer

SERVER_NAME = "127.0.0.1"
SERVER_PORT = 6006
_LOOK_SECONDS = 1.0


@click.command(short_help="Open a chat page for the server at URL, or for MODEL.")
@click.argument("server", metavar="URL|MODEL")
@click.option(
    "--server-name",
    default=SERVER_NAME,
    show_default=True,
    metavar="ADDRESS",
    help="Where the page listens; 0.0.0.0 is every address of this machine.",
)
@click.option(
    "--server-port",
    type=click.IntRange(1, 65535),
    default=SERVER_PORT,
    show_default=True,
    help="Port of the page.",
)
@click.option("--model-name", metavar="NAME", help="Which of the models behind URL.")
@click.option("--api-key", metavar="KEY", help="Where the server behind URL wants one.")
@engine_options
@paragraph_errors
def webui(
    server: str,
    server_name: str,
    server_port: int,
    model_name: str | None,
    api_key: str | None,
    **options: Any,
) -> None:
    """Open a chat page for the server at URL, or for MODEL, a folder or hub id.

    For a MODEL the page starts a server of its own; the engine options are for that one.
    """  # fmt: skip
    _require_gradio()
    _require_port(server_name, server_port)
    # Unwinds what was begun, the page's own server above all.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ExitStack() as stack:
        if is_url(server):
            url, alive = server, _always
        else:
            own = stack.enter_context(_own_server(server, options))
            url, alive = own.url, own.alive
        remote = RemoteModel(url, api_key=api_key, model=model_name)
        _show(remote, server_name, server_port, alive)


def is_url(text: str) -> bool:
    """http://host:23333 and host:23333 are addresses; folders and hub ids are not."""
    return "://" in text or re.fullmatch(r"[\w.-]+:\d+(/.*)?", text) is not None


def _always() -> bool:
    return True


def _own_server(model: str, options: dict[str, Any]) -> AbstractContextManager[OwnServer]:
    from awqkit_runtime.webui.own_server import own_server

    return own_server(model, engine_arguments(options))


def _require_gradio() -> None:
    # Read when Gradio is imported; the page itself says no to analytics, too.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "The page needs Gradio, which is not installed: pip install 'awqkit[webui]'."
        ) from error


def _require_port(server_name: str, server_port: int) -> None:
    """ConfigError for an address that cannot be had, before a model is loaded for its page."""
    family = socket.AF_INET6 if ":" in server_name else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server_name, server_port))
        except OSError as error:
            raise _no_port(server_name, server_port, error) from error


def _no_port(server_name: str, server_port: int, error: OSError) -> ConfigError:
    return ConfigError(
        f"The page cannot listen on {server_name}:{server_port}: {error}. "
        "--server-port takes another port."
    )


def _show(
    remote: RemoteModel, server_name: str, server_port: int, alive: Callable[[], bool]
) -> None:
    """The page, until Ctrl-C or SIGTERM; ServerError when its own server has ended."""
    from awqkit_runtime.webui.page import chat_page

    page = chat_page(remote)
    _launch(page, server_name, server_port)
    shown = "127.0.0.1" if server_name == "0.0.0.0" else server_name
    note(f"{remote.name}: http://{shown}:{server_port} (Ctrl-C stops)")
    try:
        while alive():
            time.sleep(_LOOK_SECONDS)
        raise ServerError("The page's server has ended; its reason stands above.")
    finally:
        page.close(verbose=False)


def _launch(page: gradio.Blocks, server_name: str, server_port: int) -> None:
    try:
        page.launch(
            server_name=server_name,
            server_port=server_port,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
        )
    except OSError as error:
        raise _no_port(server_name, server_port, error) from error
