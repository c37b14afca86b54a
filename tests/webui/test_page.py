"""The chat page in a real browser, against a scripted server."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.free_port import free_port
from tests.scripted_server import Script, scripted_server

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to show the page in"),
    # Not imported: it takes seconds, and another process needs it.
    pytest.mark.skipif(find_spec("gradio") is None, reason="no Gradio to make the page with"),
]
ROOT = Path(__file__).parents[2]
MESSAGE = "#message textarea"


@pytest.fixture(scope="module")
def script() -> Script:
    return Script()


@pytest.fixture(scope="module")
def address(script: Script) -> Iterator[str]:
    """Of a page for the scripted server."""
    port = free_port()
    with scripted_server(script) as url:
        command = [sys.executable, "-m", "awqkit_runtime", "webui", url]
        page = subprocess.Popen([*command, "--server-port", str(port)], cwd=ROOT)
        yield f"http://127.0.0.1:{port}"
        page.send_signal(signal.SIGTERM)
        assert page.wait(30) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    page = browser.new_page()
    page.foreign = []
    page.on("request", lambda request: _note_foreign(page, request.url))
    show(page, address)
    yield page
    page.close()


def show(page: Any, address: str) -> None:
    until(lambda: _opens(page, address), seconds=180)
    page.wait_for_selector(MESSAGE)


def _opens(page: Any, address: str) -> bool:
    try:
        page.goto(address)
    except sync_api.Error:
        return False
    return True


def _note_foreign(page: Any, url: str) -> None:
    if not re.match(r"(data|blob):|https?://127\.0\.0\.1[:/]", url):
        page.foreign.append(url)


def until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def send(page: Any, message: str) -> None:
    page.fill(MESSAGE, message)
    page.press(MESSAGE, "Enter")


def conversation(page: Any) -> str:
    return page.inner_text("#conversation")


def plan(script: Script, **changes: Any) -> None:
    """What the server does from now on; forgets what it was asked."""
    for name, value in vars(Script(**changes)).items():
        setattr(script, name, value)


def test_an_answer_streams_with_its_figures(page: Any, script: Script) -> None:
    metrics = "awqkit_cache_usage_ratio 0.25\n"
    plan(script, words=["Once", " upon", " a time"], seconds_a_word=0.1, metrics=metrics)
    send(page, "Hello")
    until(lambda: "Once upon a time" in conversation(page))
    until(lambda: "7 + 3 tokens" in page.inner_text("#statistics"))
    assert "tokens/s" in page.inner_text("#statistics")
    assert "cache 25.0%" in page.inner_text("#statistics")
    send(page, "And then?")
    until(lambda: len(script.requests) == 2)
    assert script.requests[1]["messages"] == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Once upon a time"},
        {"role": "user", "content": "And then?"},
    ]
    assert page.foreign == []


def test_settings_reach_the_server(page: Any, script: Script) -> None:
    plan(script)
    page.fill("#system textarea", "Be brief")
    page.fill("#temperature input[type=number]", "0")
    page.fill("#top-k input[type=number]", "7")
    page.fill("#max-tokens input[type=number]", "33")
    page.press("#max-tokens input[type=number]", "Tab")
    send(page, "Hello")
    until(lambda: len(script.requests) == 1)
    request = script.requests[0]
    assert request["messages"][0] == {"role": "system", "content": "Be brief"}
    assert (request["temperature"], request["top_k"], request["max_tokens"]) == (0, 7, 33)


@pytest.mark.parametrize(
    ("size", "opens"), [((1280, 800), True), ((390, 844), False)], ids=["desk", "phone"]
)
def test_settings_begin_beside_the_conversation_and_never_over_it(
    browser: Any, address: str, size: tuple[int, int], opens: bool
) -> None:
    page = browser.new_page(viewport=dict(zip(("width", "height"), size, strict=True)))
    show(page, address)
    settled = "open" if opens else "closed"
    until(lambda: settings(page) == settled)
    page.wait_for_timeout(500)  # In which it would open.
    assert settings(page) == settled
    page.click("button[aria-label='Toggle Sidebar']")
    until(lambda: settings(page) != settled)
    page.close()


def settings(page: Any) -> str:
    """Whether they are within the screen."""
    box = page.locator("#settings").bounding_box()
    return "open" if box["x"] >= 0 else "closed" if box["x"] + box["width"] <= 0 else "moving"


def test_stop_ends_the_servers_work(page: Any, script: Script) -> None:
    plan(script, words=["word "] * 600, seconds_a_word=0.05)
    send(page, "Go on")
    until(lambda: "word word" in conversation(page))
    page.click("button.stop-button")
    until(lambda: script.deserted == 1)


def test_retry_asks_again(page: Any, script: Script) -> None:
    plan(script, words=["first"])
    send(page, "Hello")
    until(lambda: "first" in conversation(page))
    script.words = ["second"]
    page.click("button[title='Retry']")
    until(lambda: "second" in conversation(page))
    assert script.requests[0]["messages"] == script.requests[1]["messages"]


def test_a_refusal_is_shown_and_the_page_lives(page: Any, script: Script) -> None:
    plan(script, refusal=(429, "the queue is full"))
    send(page, "Hello")
    page.wait_for_selector("text=the queue is full")
    plan(script, words=["again"])
    until(lambda: page.is_enabled(MESSAGE))
    send(page, "Hello")
    until(lambda: "again" in conversation(page))
    assert script.requests[0]["messages"] == [{"role": "user", "content": "Hello"}]
