"""What bounds a server and how it ends: keys, queues, deadlines, leavers, signals."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from click.testing import CliRunner

from awqkit_runtime.cli import main
from awqkit_runtime.serve.worker.client import EngineEndedError
from tests.serve.servers import DEMO, ENDS_WITHIN, LONG, Listener, Server, chat_body, eventually

KEYS = ("first-key", "second-key")
ABANDONED = 'requests_total{endpoint="chat",outcome="abandoned"}'


@pytest.fixture(scope="module")
def narrow() -> Iterator[Server]:
    """Two answers at once, two in the queue, two keys."""
    options = ["--max-batch-size", "2", "--max-queued-requests", "2", "--max-choices", "3"]
    limits = ["--max-body-size", "20000", "--api-keys", ",".join(KEYS)]
    with Server(DEMO, *options, *limits) as server:
        yield server


def key(server: Server) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[1]}"}


def test_keys_cover_every_path_but_health_and_the_docs(narrow: Server) -> None:
    for path in ("/health", "/", "/openapi.json", "/docs-assets/swagger-ui.css"):
        assert narrow.get(path).status_code == 200, path
    for path in (
        "/v1/models",
        "/metrics",
        "/tokenize",
        "/nothing",
        "//health",
        "/health/",
        "/docs",
    ):
        for headers in (
            {},
            {"authorization": "Bearer first-ke"},
            {"authorization": "Basic first-key"},
            {"authorization": "first-key"},
            {"x-api-key": "first-key"},
        ):
            response = narrow.get(path, headers=headers)
            assert response.status_code == 401, (path, headers)
            assert response.json()["error"]["code"] == "invalid_api_key"
    for name in KEYS:
        headers = {"authorization": f"Bearer {name}"}
        assert narrow.get("/v1/models", headers=headers).status_code == 200


def test_the_docs_need_no_network(narrow: Server) -> None:
    page = narrow.get("/").text
    assert "swagger-ui" in page and "//" not in page.replace("<!--", "").split("<script>")[0]
    assert "/v1/chat/completions" in narrow.get("/openapi.json").json()["paths"]
    assert len(narrow.get("/docs-assets/swagger-ui-bundle.js").content) > 500_000
    assert narrow.get("/openapi.json").json()["security"] == [{"key": []}]


def test_what_the_docs_offer_to_send_is_answered(narrow: Server) -> None:
    paths = narrow.get("/openapi.json").json()["paths"]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize"):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert narrow.post(path, content["example"], headers=key(narrow)).status_code == 200, path


def test_heads_are_answered_for_who_watches(narrow: Server) -> None:
    for path in ("/health", "/"):
        response = httpx.head(f"{narrow.url}{path}")
        assert response.status_code == 200 and response.content == b""


def test_bodies_and_choices_are_bounded(narrow: Server) -> None:
    headers = key(narrow)
    large = narrow.post("/v1/chat/completions", chat_body("a" * 30_000), headers=headers)
    assert large.status_code == 413 and "20000" in large.json()["error"]["message"]
    many = narrow.post("/v1/chat/completions", chat_body(n=4), headers=headers)
    assert many.status_code == 400 and many.json()["error"]["param"] == "n"
    broken = httpx.post(
        f"{narrow.url}/v1/completions",
        content=b"{",
        headers=headers | {"content-type": "application/json"},
    )
    assert broken.status_code == 400 and "JSON" in broken.json()["error"]["message"]


def test_a_full_queue_answers_at_once_and_says_when_to_come_again(narrow: Server) -> None:
    headers = key(narrow)
    listeners = [Listener(narrow, chat_body(**LONG), headers=headers) for _ in range(4)]
    try:
        eventually(lambda: _open(narrow) == 4)
        refused = narrow.post("/v1/chat/completions", chat_body(), headers=headers)
        # At once: before any of the others has ended.
        assert refused.status_code == 429 and _open(narrow) == 4
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["code"] == "queue_full"
    finally:
        for listener in listeners:
            listener.close()
    eventually(lambda: _open(narrow) == 0)
    assert narrow.post("/v1/chat/completions", chat_body(max_tokens=1), headers=headers).is_success


def test_leavers_free_their_pages_streaming_or_not(narrow: Server) -> None:
    headers = key(narrow)
    before = _figure(narrow, ABANDONED)
    for streaming in (True, False):
        body = chat_body(**LONG) | {"stream": streaming}
        raw = json.dumps(body).encode()
        host, port = narrow.url.removeprefix("http://").split(":")
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\ncontent-type: application/json"
            f"\r\nauthorization: {headers['authorization']}\r\ncontent-length: {len(raw)}\r\n\r\n"
        )
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + raw)
            eventually(lambda: _figure(narrow, "cache_pages_used") > 0)
        eventually(lambda: _figure(narrow, "cache_pages_used") == _open(narrow) == 0)
    # It was not the end of the answers that freed them.
    assert _figure(narrow, ABANDONED) == before + 2


def _figure(server: Server, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics", headers=key(server)).text.splitlines()
    found = (float(line.split()[1]) for line in lines if line.startswith(f"awqkit_{name} "))
    return next(found, 0.0)


def _open(server: Server) -> float:
    return _figure(server, "open")


def test_hidden_docs_origins_and_a_second_signal() -> None:
    with Server(DEMO, "--hide-docs", "--allow-origins", "http://page.example") as server:
        for path in ("/", "/openapi.json", "/docs-assets/swagger-ui.css"):
            assert server.get(path).status_code == 404
        allowed = server.get("/v1/models", headers={"origin": "http://page.example"})
        assert allowed.headers["access-control-allow-origin"] == "http://page.example"
        other = server.get("/v1/models", headers={"origin": "http://other.example"})
        assert "access-control-allow-origin" not in other.headers
        asked = {"access-control-request-method": "POST", "origin": "http://page.example"}
        asked["access-control-request-headers"] = "authorization,content-type,x-stainless-os"
        flight = httpx.options(f"{server.url}/v1/chat/completions", headers=asked)
        assert flight.status_code == 200
        assert "x-stainless-os" in flight.headers["access-control-allow-headers"]
        # And a model whose template knows no tools.
        tool = {"type": "function", "function": {"name": "f"}}
        refused = server.post("/v1/chat/completions", chat_body(tools=[tool]))
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "tools"
        long = Listener(server, chat_body(**LONG))
        assert long.started.wait(ENDS_WITHIN)
        engine = server.engine
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(ENDS_WITHIN)
        assert long.ended.wait(ENDS_WITHIN) and _gone(engine)


def test_a_signal_drains(narrow: Server) -> None:
    """The last one that this server sees."""
    short = Listener(narrow, chat_body(ignore_eos=True, max_tokens=40), headers=key(narrow))
    assert short.started.wait(ENDS_WITHIN)
    engine = narrow.engine
    narrow.process.send_signal(signal.SIGTERM)
    assert short.ended.wait(ENDS_WITHIN)
    assert short.events[-1]["choices"][0]["finish_reason"] == "length"
    assert narrow.process.wait(ENDS_WITHIN) == 0 and _gone(engine)


@pytest.mark.slow
def test_the_engine_does_not_outlive_a_killed_server() -> None:
    with Server() as server:
        engine = server.engine
        server.process.kill()
        eventually(lambda: _gone(engine))


@pytest.mark.slow
def test_a_server_ends_with_one_of_its_ranks_though_nobody_asks_for_anything() -> None:
    with Server(DEMO, "--tp", "2") as server:
        engine = server.engine
        [rank] = engine.children()
        rank.kill()
        assert server.process.wait(ENDS_WITHIN) == EngineEndedError.exit_code
        assert _gone(engine)
        assert any("Rank 1 of 2 has ended with code -9" in line for line in server.log)


def _gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["/no/such/model"], "/no/such/model"),
        ([str(DEMO), "--server-name", "203.0.113.7"], "203.0.113.7"),
        ([str(DEMO), "--api-keys", "with space"], "API key"),
    ],
)
def test_what_keeps_a_server_from_starting_is_told_in_a_paragraph(
    options: list[str], named: str
) -> None:
    done = CliRunner().invoke(main, ["serve", "--server-port", "0", *options])
    assert done.exit_code == 1 and named in done.stderr and "Traceback" not in done.output


def test_a_taken_port_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = CliRunner().invoke(main, ["serve", str(tmp_path), "--server-port", port])
    assert done.exit_code == 1 and port in done.stderr and "--server-port" in done.stderr
