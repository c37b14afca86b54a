"""awqkit-runtime webui: a chat page in the browser."""

from __future__ import annotations

import os
import re
import signal
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from awqkit_runtime.commands.console import note, paragraph_errors
from awqkit_runtime.commands.options import engine_arguments, engine_options
from awqkit_runtime.errors import ConfigError
from awqkit_runtime.remote import RemoteModel

if TYPE_CHECKING:
    import gradio

SERVER_NAME = "127.0.0.1"
SERVER_PORT = 6006


@click.command()
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
    with ExitStack() as stack:
        url = server if is_url(server) else stack.enter_context(_own_server(server, options))
        remote = RemoteModel(url, api_key=api_key, model=model_name)
        _serve_until_stopped(remote, server_name, server_port)


def is_url(text: str) -> bool:
    """http://host:23333 and host:23333 are addresses; folders and hub ids are not."""
    return "://" in text or re.fullmatch(r"[\w.-]+:\d+(/.*)?", text) is not None


def _own_server(model: str, options: dict[str, Any]) -> Any:
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


def _serve_until_stopped(remote: RemoteModel, server_name: str, server_port: int) -> None:
    """Ctrl-C and SIGTERM close the page."""
    from awqkit_runtime.webui.page import chat_page

    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    page = chat_page(remote)
    _launch(page, server_name, server_port)
    shown = "127.0.0.1" if server_name == "0.0.0.0" else server_name
    note(f"{remote.name}: http://{shown}:{server_port} (Ctrl-C stops)")
    try:
        stopped.wait()
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
        raise ConfigError(
            f"The page cannot listen on {server_name}:{server_port}: {error}. "
            "--server-port takes another port."
        ) from error
