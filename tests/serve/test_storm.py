"""Many clients, half of whom leave: nothing leaks, the others notice nothing. And a dead engine."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.serve.servers import DEMO, LONG, Server, chat_body, eventually

#: Seconds until every client knows that the engine is dead: tenths where nothing else runs.
SOON = 2.0

OPENINGS = ["Once upon a time", "The sea", "Dear friend,", "In the house", "Who are you?", "No"]


def bodies(count: int, seed: int) -> list[dict[str, Any]]:
    """Greedy requests of many lengths, some with a long common beginning."""
    rng = random.Random(seed)
    shared = "It was a long story, which everybody knew by heart. " * 8
    found = []
    for number in range(count):
        text = rng.choice(["", shared]) + rng.choice(OPENINGS) + f" {number % 40}"
        asked = {"role": "user", "content": text}
        limits = {"temperature": 0, "max_tokens": rng.randrange(1, 24), "ignore_eos": True}
        found.append({"model": "demo", "messages": [asked], **limits})
    return found


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    """The answer, whole or streamed."""
    if not body.get("stream"):
        response = await client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])
    text = ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                text += choice["delta"].get("content", "")
    return text


async def leave(client: httpx.AsyncClient, body: dict[str, Any], after: float) -> None:
    """Asks, and closes the connection before or while the answer comes."""
    try:
        async with asyncio.timeout(after):
            await ask(client, body)
    except (TimeoutError, httpx.HTTPError):
        pass


async def storm(url: str, wanted: list[dict[str, Any]], seed: int) -> list[str]:
    """Answers to the wanted requests; as many others come and go meanwhile."""
    rng = random.Random(seed)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=1500.0) as client:

        async def stay(body: dict[str, Any], delay: float) -> str:
            await asyncio.sleep(delay)
            return await ask(client, body)

        async def go(body: dict[str, Any], delay: float, after: float) -> str:
            await asyncio.sleep(delay)
            await leave(client, body | {"max_tokens": 500, "n": rng.choice([1, 1, 3])}, after)
            return ""

        staying = [stay(b | {"stream": rng.random() < 0.5}, rng.uniform(0, 2)) for b in wanted]
        going = [
            go(b | {"stream": rng.random() < 0.5}, rng.uniform(0, 2), rng.expovariate(0.5))
            for b in bodies(len(wanted), seed + 1)
        ]
        together = [*staying, *going]
        rng.shuffle(going)
        return (await asyncio.gather(*together))[: len(wanted)]


def quiet_answers(server: Server, wanted: list[dict[str, Any]]) -> list[str]:
    """One after the other."""
    return [
        str(server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"])
        for body in wanted
    ]


def check_storm(server: Server, clients: int, rounds: int) -> None:
    wanted = bodies(clients // 2, seed=1)
    expected = quiet_answers(server, wanted)
    processes = [psutil.Process(server.process.pid), server.engine]
    memory: list[int] = []
    for number in range(rounds):
        assert asyncio.run(storm(server.url, wanted, seed=number)) == expected
        eventually(server.quiet)
        memory.append(sum(process.memory_info().rss for process in processes))
    figures = server.figures()
    assert figures['awqkit_requests_total{endpoint="chat",outcome="abandoned"}'] > 0
    # The first round warms up caches and thread pools.
    assert all(later < memory[0] * 1.15 + 2**25 for later in memory[1:]), memory
    assert processes[0].num_fds() < 64


@pytest.fixture(scope="module")
def steady() -> Iterator[Server]:
    options = ["--deterministic", "--session-len", "1024", "--cache-max-entry-count", "8MiB"]
    with Server(DEMO, *options) as server:
        yield server


def test_a_small_storm(steady: Server) -> None:
    check_storm(steady, clients=24, rounds=1)


@pytest.mark.slow
def test_a_storm_of_500(steady: Server) -> None:
    check_storm(steady, clients=500, rounds=2)


def test_a_killed_engine_ends_every_request_and_then_the_server(steady: Server) -> None:
    """The last one that this server sees."""
    endings, seconds, health = asyncio.run(kill_under_load(steady, clients=40))
    assert endings == ["engine_stopped"] * 40
    assert seconds < SOON
    assert health[-1] == 503 and set(health) == {200, 503}
    assert steady.process.wait(60) == 1
    eventually(lambda: "process has ended with code -9" in "".join(steady.log))


async def kill_under_load(server: Server, *, clients: int) -> tuple[list[str], float, list[int]]:
    """What errors the clients get; seconds until the last has it; what /health says until its end.

    Half of the clients stream.
    """
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=120.0) as client:
        asking = [
            asyncio.create_task(error_of(client, chat_body(**LONG) | {"stream": number % 2 == 0}))
            for number in range(clients)
        ]
        while await open_answers(client) < clients:
            await asyncio.sleep(0.05)
        asked = asyncio.create_task(health_to_the_end(client))
        await asyncio.sleep(0.5)
        server.engine.kill()
        killed = time.monotonic()
        endings = await asyncio.gather(*asking)
        return endings, time.monotonic() - killed, await asked


async def error_of(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    """The code of the error that ends an answer."""
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line async for line in response.aiter_lines() if line]
    return str(json.loads(lines[-1].removeprefix("data: "))["error"]["code"])


async def open_answers(client: httpx.AsyncClient) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("awqkit_open "))


async def health_to_the_end(client: httpx.AsyncClient) -> list[int]:
    """The statuses until nobody answers any more."""
    found = []
    try:
        while True:
            found.append((await client.get("/health")).status_code)
            await asyncio.sleep(0.2)
    except httpx.HTTPError:
        return found
