"""The terminal client against a scripted server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from awqkit_runtime.cli import main
from awqkit_runtime.remote import api_base
from tests.scripted_server import Script, scripted_server

pytest.importorskip("openai")
ROOT = Path(__file__).parents[2]


def client(url: str, text: str, *options: str) -> Result:
    return CliRunner().invoke(main, ["client", url, *options], input=text)


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_turns_of_one_conversation_reach_the_server(ending: str) -> None:
    script = Script(words=["Hi", " you"])
    with scripted_server(script) as url:
        result = client(url + ending, "Hello\n\nAnd now?\n", "--system", "Be brief")
    assert result.exit_code == 0
    assert result.stdout == "Hi you\nHi you\n"
    assert script.requests[1]["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi you"},
        {"role": "user", "content": "And now?"},
    ]
    assert script.requests[0]["model"] == "scripted"


def test_only_the_options_that_were_given_are_sent() -> None:
    script = Script()
    with scripted_server(script) as url:
        client(url, "a\n")
        client(url, "a\n", "--temperature", "0", "--top-k", "5", "--stop", "x", "--model", "other")
    plain, chosen = script.requests
    assert {"temperature", "top_k", "stop", "max_tokens"}.isdisjoint(plain)
    assert chosen["temperature"] == 0 and chosen["top_k"] == 5 and chosen["stop"] == ["x"]
    assert chosen["model"] == "other"


def test_reset_forgets() -> None:
    script = Script()
    with scripted_server(script) as url:
        client(url, "one\n/reset\ntwo\n")
    assert script.requests[1]["messages"] == [{"role": "user", "content": "two"}]


def test_an_answer_that_breaks_off_is_told_and_the_chat_goes_on() -> None:
    script = Script(words=["He", "llo"], break_after=1)
    with scripted_server(script) as url:
        result = client(url, "one\ntwo\n")
    assert result.exit_code == 0
    assert result.stdout.startswith("He")
    assert len(script.requests) == 2


def test_a_refused_message_is_not_kept() -> None:
    script = Script(refusal=(429, "the queue is full"))
    with scripted_server(script) as url:
        result = client(url, "one\n/help\ntwo\n")
    assert "the queue is full" in result.stderr and "429" in result.stderr
    assert [request["messages"][0]["content"] for request in script.requests] == ["one", "two"]


def test_a_cut_answer_says_so() -> None:
    with scripted_server(Script(finish_reason="length")) as url:
        assert "cut" in client(url, "a\n").stderr


@pytest.mark.parametrize(
    ("url", "said"), [("127.0.0.1:9", "Nothing answers"), ("ftp://somewhere", "no address")]
)
def test_an_address_without_a_server_is_one_paragraph(url: str, said: str) -> None:
    result = client(url, "a\n")
    assert result.exit_code == 1
    assert said in result.stderr and "Traceback" not in result.stderr


def test_a_key_is_asked_for_and_used() -> None:
    with scripted_server(Script(api_key="secret")) as url:
        refused = client(url, "a\n")
        served = client(url, "a\n", "--api-key", "secret")
    assert refused.exit_code == 1 and "--api-key" in refused.stderr
    assert served.exit_code == 0 and served.stdout == "Hello there.\n"


def test_a_server_without_models_is_an_error() -> None:
    with scripted_server(Script(models=[])) as url:
        assert "serves no model" in client(url, "a\n").stderr


def test_ctrl_c_stops_an_answer_at_the_server_too() -> None:
    script = Script(words=["word "] * 400, seconds_a_word=0.05)
    with scripted_server(script) as url:
        process = subprocess.Popen(
            [sys.executable, "-m", "awqkit_runtime", "client", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
        assert process.stdout.read(10) == b"word word "
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(b"/exit\n", timeout=30)
        deadline = time.monotonic() + 10
        while not script.deserted and time.monotonic() < deadline:
            time.sleep(0.05)
    assert process.returncode == 0
    assert b"(stopped)" in errors
    assert script.deserted == 1


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://host:23333", "http://host:23333/v1"),
        ("host:23333/", "http://host:23333/v1"),
        ("https://host/prefix/v1/", "https://host/prefix/v1"),
    ],
)
def test_addresses(given: str, base: str) -> None:
    assert api_base(given) == base
