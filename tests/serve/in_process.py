"""The HTTP application around an engine that does what a test says, without a process or a port."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from awqkit_runtime.engine.model_text import ModelText, NoText
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.serve.app import create_app
from awqkit_runtime.serve.config import ServeConfig
from awqkit_runtime.serve.limits import Admission
from awqkit_runtime.serve.metrics import Metrics
from awqkit_runtime.serve.prompts import PromptEncoder
from awqkit_runtime.serve.service import Service
from awqkit_runtime.serve.token_texts import TokenTexts
from awqkit_runtime.serve.worker.client import Answer
from awqkit_runtime.serve.worker.messages import Piece, Stats


class ScriptedEngine:
    """Gives every request the same pieces, and then nothing; remembers which were given up."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.stats = Stats(total_pages=8)
        self.gone = asyncio.Event()
        self.forgotten: list[int] = []
        self._pieces = pieces
        self._requests = 0

    def submit(self, prompts: list[list[int]], params: dict[str, Any], choices: int = 1) -> Answer:
        answer = Answer(self, self._requests, choices * len(prompts))  # type: ignore[arg-type]
        for text in self._pieces:
            answer.put(Piece(request=self._requests, choice=0, text=text, token_ids=[1]))
        self._requests += 1
        return answer

    def forget(self, number: int) -> None:
        self.forgotten.append(number)


def service(engine: ScriptedEngine, config: ServeConfig) -> Service:
    """Of a model without a tokenizer: prompts are token ids."""
    text = ModelText(
        folder=Path(),
        tokenizer=None,
        bos_token_id=None,
        stop_token_ids=(),
        chat_defaults=SamplingParams(),
    )
    admission = Admission(8, clock=asyncio.get_running_loop().time)
    client: Any = engine
    return Service(
        config=config,
        model_name="scripted",
        engine=client,
        encoder=PromptEncoder(text, session_len=64),
        admission=admission,
        metrics=Metrics(client, admission),
        token_texts=TokenTexts(NoText()),
        tool_format=None,
    )


def http_client(made: Service) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=create_app(made))  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://scripted")
