"""Runs a server: the engine first, then the port, until a signal or the engine ends it."""

from __future__ import annotations

import asyncio
import importlib
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from awqkit.checkpoint import read_decoder_config
from awqkit_runtime.engine.model_text import (
    ModelText,
    NoText,
    read_model_text,
    read_tokenizer,
)
from awqkit_runtime.errors import ConfigError
from awqkit_runtime.serve.app import create_app
from awqkit_runtime.serve.config import ServeConfig
from awqkit_runtime.serve.connection import PromptConnection
from awqkit_runtime.serve.limits import Admission
from awqkit_runtime.serve.metrics import Metrics
from awqkit_runtime.serve.prompts import PromptEncoder
from awqkit_runtime.serve.service import Service
from awqkit_runtime.serve.token_texts import TokenTexts
from awqkit_runtime.serve.tools.formats import ToolFormat, find_format
from awqkit_runtime.serve.worker.client import EngineClient, EngineEndedError

#: Seconds that /health tells of a dead engine before the process ends.
_MOURNING_SECONDS = 3.0
_BACKLOG = 2048
_FILES = 2**16


def run(
    model: str,
    *,
    engine: dict[str, Any],
    config: ServeConfig,
    ready: Callable[[str, Service], None],
) -> None:
    """Serves until a signal.

    engine: fields of EngineConfig. ready: called with the server's URL once it listens.
    ConfigError where the address cannot be had, EngineStartError where the model cannot be loaded,
    EngineEndedError where the engine's process ends.
    """
    asyncio.run(_run(model, engine, config, ready))


async def _run(
    model: str,
    engine: dict[str, Any],
    config: ServeConfig,
    ready: Callable[[str, Service], None],
) -> None:
    _allow_connections()
    with _bind(config) as listener:
        imports = asyncio.create_task(asyncio.to_thread(_import_what_texts_need))
        client = await EngineClient.start(model, engine)
        await imports
        try:
            service = make_service(model, client, config)
            server = _Server(service, listener, ready)
            await server.serve(sockets=[listener])
            service.encoder.close()
            ended = client.gone.is_set()
        finally:
            await client.close()
        if ended:
            raise EngineEndedError(client.exit_code)


def _import_what_texts_need() -> None:
    """Beside the engine, which takes longer to load."""
    for name in ("tokenizers", "awqkit.checkpoint.chat_template"):
        importlib.import_module(name)


def make_service(model: str, client: EngineClient, config: ServeConfig) -> Service:
    """Around an engine that has loaded its model."""
    ready = client.ready
    admission = Admission(
        ready.max_batch_size + config.max_queued_requests, clock=asyncio.get_running_loop().time
    )
    folder = Path(ready.folder)
    text = read_model_text(folder, read_decoder_config(folder), read_tokenizer(folder))
    return Service(
        config=config,
        model_name=config.model_name or Path(model).name or model,
        engine=client,
        encoder=PromptEncoder(text, session_len=ready.session_len),
        admission=admission,
        metrics=Metrics(client, admission),
        token_texts=TokenTexts(text.tokenizer or NoText()),
        tool_format=_tool_format(text, config),
    )


def _tool_format(text: ModelText, config: ServeConfig) -> ToolFormat | None:
    if text.tokenizer is None or not text.has_chat_template:
        return None
    return find_format(
        config.tool_call_parser, str(text.tokenizer.chat_template), text.tokenizer.vocabulary
    )


def _allow_connections() -> None:
    """As many as the system lets a process have; a shell's habit is 1024 files, one a client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _bind(config: ServeConfig) -> socket.socket:
    """The port, taken before the model is loaded; nobody can connect until the server listens."""
    family = socket.AF_INET6 if ":" in config.server_name else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.server_name, config.server_port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Cannot listen on {config.server_name}, port {config.server_port}: "
            f"{error.strerror or error}. Choose another --server-port or --server-name, or stop "
            "what uses it."
        ) from error
    return listener


class _Server(uvicorn.Server):
    """The first signal drains, a second one stops; the engine's end is the server's."""

    def __init__(
        self,
        service: Service,
        listener: socket.socket,
        ready: Callable[[str, Service], None],
    ) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(service),
                http=PromptConnection,
                ws="none",
                lifespan="off",
                log_level="warning",
                backlog=_BACKLOG,
                server_header=False,
            )
        )
        self._service = service
        self._listener = listener
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._watching = asyncio.create_task(self._watch_engine(), name="engine watch")
        host, port = self._listener.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        self._ready(f"http://{host}:{port}", self._service)

    async def _watch_engine(self) -> None:
        await self._service.engine.gone.wait()
        await asyncio.sleep(_MOURNING_SECONDS)
        self.should_exit = self.force_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
