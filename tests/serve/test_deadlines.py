"""An answer that takes too long ends with an error, and what it held is free."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from awqkit_runtime.serve.config import ServeConfig
from tests.serve.in_process import ScriptedEngine, http_client, service


def ask(pieces: list[str], **more: Any) -> httpx.Response:
    """Of an engine that stops in the middle of an answer."""

    async def run() -> httpx.Response:
        engine = ScriptedEngine(pieces)
        made = service(engine, ServeConfig(request_timeout=0.1))
        body = {"model": "scripted", "prompt": [1, 2, 3]} | more
        async with http_client(made) as client:
            response = await client.post("/v1/completions", json=body)
        assert set(engine.forgotten) == {0} and made.admission.taken == 0
        assert b'outcome="timeout"} 1.0' in made.metrics.render()
        return response

    return asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
def test_before_anything_was_sent_the_status_tells(stream: bool) -> None:
    response = ask([], stream=stream)
    assert response.status_code == 504 and response.json()["error"]["code"] == "timeout"


def test_in_a_stream_the_last_event_tells() -> None:
    response = ask(["Once", " upon"], stream=True)
    events = response.text.strip().split("\n\n")
    assert response.status_code == 200 and len(events) == 3
    assert '"text":"Once"' in events[0] and '"code":"timeout"' in events[-1]


def test_a_whole_answer_is_not_cut_in_the_middle() -> None:
    assert ask(["Once", " upon"]).status_code == 504
