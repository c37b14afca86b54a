"""Bodies made to break a server: each is refused with a reason, and the server goes on."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any

import httpx
import pytest

from awqkit_runtime.serve.connection import HEAD_SECONDS
from tests.serve.servers import Server, chat_body

HUGE = 10**40
CALL: Any = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}


def send(server: Server, path: str, body: str) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(f"{server.url}{path}", content=body.encode(), headers=headers, timeout=60.0)


def chat(**more: Any) -> str:
    return json.dumps(chat_body(**({"max_tokens": 2} | more)))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", "[" * 100_000),
        ("/v1/chat/completions", '{"a":' * 100_000),
        ("/v1/chat/completions", "null"),
        ("/v1/chat/completions", ""),
        ("/v1/chat/completions", chat(max_tokens=HUGE)),
        ("/v1/chat/completions", chat(seed=HUGE)),
        ("/v1/chat/completions", chat(min_tokens=HUGE, max_tokens=None)),
        ("/v1/chat/completions", chat(temperature=float("nan"))),
        ("/v1/chat/completions", chat(temperature=float("inf"))),
        ("/v1/chat/completions", chat(temperature=1e999)),
        ("/v1/chat/completions", chat(logit_bias={"1": float("nan")})),
        ("/v1/chat/completions", chat(logit_bias={"١": 1})),
        ("/v1/chat/completions", chat(stop=["x"] * 1000)),
        ("/v1/chat/completions", chat(messages=[])),
        ("/v1/chat/completions", chat(messages=[{"role": "user", "content": "\ud800"}])),
        ("/v1/chat/completions", chat(messages=[{"role": "god", "content": "x"}])),
        (
            "/v1/chat/completions",
            chat(messages=[{"role": "assistant", "content": "", "tool_calls": [CALL]}]),
        ),
        ("/v1/chat/completions", chat(regex="(" * 50_000)),
        ("/v1/chat/completions", chat(regex="(" * 2000 + ")" * 2000)),
        ("/v1/chat/completions", chat(grammar="start: " + "(" * 20_000)),
        ("/v1/completions", json.dumps({"model": "demo", "prompt": [HUGE]})),
        ("/v1/completions", json.dumps({"model": "demo", "prompt": [4096]})),
        ("/v1/completions", json.dumps({"model": "demo", "prompt": [[1], [2, -1]]})),
        ("/v1/completions", json.dumps({"model": "demo", "prompt": "\udfff", "echo": True})),
        ("/v1/completions", json.dumps({"model": "demo", "prompt": ["a"] * 65})),
        ("/v1/completions", json.dumps({"model": "demo", "prompt": "a" * 1_000_000})),
        ("/v1/responses", json.dumps({"model": "demo", "input": "x", "tools": [{}]})),
        ("/tokenize", json.dumps({"prompt": "x", "messages": []})),
    ],
    ids=range(28),
)
def test_refused_with_a_reason(server: Server, path: str, body: str) -> None:
    response = send(server, path, body)
    assert response.status_code == 400, response.text[:500]
    assert len(response.json()["error"]["message"]) > 10
    assert server.get("/health").status_code == 200


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"\ud800": {"type": "string"}}},
        {"anyOf": [{"type": "string", "pattern": f"(a|b){{1,{n}}}c*"} for n in range(1, 400)]},
        json.loads('{"items":' * 400 + "{}" + "}" * 400),
        {"$ref": "#"},
        {"$ref": "file:///etc/passwd"},
        {"type": "array", "minItems": 10**9},
        {"type": "string", "minLength": 10**9},
        {"enum": [str(i) for i in range(5000)]},
    ],
    ids=range(8),
)
def test_schemas_end_soon_whatever_they_hold(server: Server, schema: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    response = send(server, "/v1/chat/completions", chat(response_format=form))
    assert response.status_code in (200, 400), response.text[:500]
    assert "file" not in response.text or "passwd" in response.text
    assert server.quiet()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", json.dumps({"model": "demo", "prompt": [{}] * 600_000})),
        ("/v1/chat/completions", chat(messages=[{}] * 600_000)),
        ("/v1/chat/completions", chat(**{f"k{i}": 1 for i in range(150_000)})),
        ("/v1/chat/completions", chat(logit_bias={f"x{i}": "a" for i in range(100_000)})),
        ("/v1/completions", json.dumps({"model": "demo", "prompt": "ab " * 900_000})),
    ],
    ids=["prompts", "messages", "fields", "biases", "text"],
)
def test_what_is_wrong_a_million_times_is_told_once_and_soon(
    server: Server, path: str, body: str
) -> None:
    """In the time of a few readings: each once took hundreds, in which nobody was answered."""
    start = time.monotonic()
    json.loads(body)
    reading = time.monotonic() - start
    start = time.monotonic()
    response = send(server, path, body)
    assert response.status_code == 400 and len(response.text) < 1000
    assert time.monotonic() - start < 2 + 40 * reading


def test_a_body_that_is_refused_unread_does_not_cost_the_answer(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n"
        connection.sendall(head.encode() + b" " * 9_000_000)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 413 ") and b"the most that this server takes" in answer


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (chat(messages=[{"role": "user"}]), "messages.0.content"),
        (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
         "messages.0.content.0.type"),
        (chat(messages=["x"]), "messages.0"),
        (chat(stop=5), "stop"),
        (chat(regex="a(?=b)"), "regex"),
        (chat(grammar="start: nothing"), "grammar"),
        (chat(response_format={"type": "json_schema"}), "response_format.json_schema"),
        (chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}}],
              tool_choice="required"), "tools.0.function.parameters"),
    ],
)  # fmt: skip
def test_the_field_that_is_wrong_is_named_as_the_client_knows_it(
    server: Server, body: str, param: str
) -> None:
    response = send(server, "/v1/chat/completions", body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param


def test_a_body_that_does_not_say_it_is_json_is_told_how(server: Server) -> None:
    response = httpx.post(f"{server.url}/v1/chat/completions", content=chat().encode())
    assert response.status_code == 400
    assert "Content-Type: application/json" in response.json()["error"]["message"]


def test_surrogates_in_tools_are_refused(server: Server) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "\ud800"}}
    assert send(server, "/v1/chat/completions", chat(tools=[tool])).status_code == 400
    inner = {"type": "object", "properties": {"x": {"description": "\ud800"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": inner}}
    assert send(server, "/v1/chat/completions", chat(tools=[tool])).status_code in (200, 400)


def test_broken_http_closes_the_connection(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for sent in (
        b"\x00\xff" * 50 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"a" * 200_000,
        b"PRI * HTTP/2.0\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            answer = b""
            with contextlib.suppress(OSError):  # It may have been closed by then.
                connection.sendall(sent)
                answer = connection.recv(4096)
            assert not answer or b" 40" in answer.split(b"\r\n")[0]
    assert server.get("/health").status_code == 200


def test_bytes_that_are_no_text_are_refused(server: Server) -> None:
    for content in (b'{"model": "\xff"}', b"\xff\xfe{\x00}\x00", b"--x\r\n\r\n"):
        headers = {"content-type": "application/json"}
        response = httpx.post(f"{server.url}/v1/completions", content=content, headers=headers)
        assert response.status_code == 400 and response.json()["error"]["message"]


@pytest.mark.slow
def test_connections_that_say_nothing_or_never_end_are_closed(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    for sent in (b"", b"GET /health HTTP/1.1\r\nx:", whole + b"GET /health HTTP/1.1\r\nx:"):
        with socket.create_connection((host, int(port)), timeout=3 * HEAD_SECONDS) as connection:
            connection.sendall(sent)
            while connection.recv(1000):  # Until the server closes it.
                pass
