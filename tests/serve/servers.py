"""A server in a process of its own, on a free port of 127.0.0.1."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

DEMO = Path(__file__).parents[2] / "examples" / "demo_model" / "model"
#: Seconds; a machine may be busy.
STARTS_WITHIN = 200.0
ENDS_WITHIN = 60.0

#: Hundreds of tokens: longer than any test waits.
LONG: dict[str, Any] = {"ignore_eos": True, "temperature": 0, "max_tokens": 1900}


class Server:
    """`awqkit-runtime serve`, ready when the constructor returns; use it in a `with` statement."""

    def __init__(self, model: Path = DEMO, *options: str, model_name: str = "demo") -> None:
        arguments = ["serve", str(model), "--server-port", "0", "--model-name", model_name]
        code = "from awqkit_runtime.cli import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.model_name = model_name
        self.log: list[str] = []
        self._ready = threading.Event()
        self.url = ""
        threading.Thread(target=self._read, daemon=True).start()
        if not self._ready.wait(STARTS_WITHIN) or not self.url:
            self.process.kill()
            raise AssertionError("the server did not start:\n" + "".join(self.log))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *details: Any) -> None:
        self.process.kill()
        self.process.wait(ENDS_WITHIN)

    @property
    def engine(self) -> psutil.Process:
        """The engine's process."""
        [child] = psutil.Process(self.process.pid).children()
        return child

    def client(self, **options: Any) -> openai.OpenAI:
        settings = {"api_key": "none", "max_retries": 0, "timeout": 120.0} | options
        return openai.OpenAI(base_url=f"{self.url}/v1", **settings)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=120.0, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=30.0, **options)

    def figures(self) -> dict[str, float]:
        """/metrics, by name and labels."""
        lines = self.get("/metrics").text.splitlines()
        return {
            line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
            for line in lines
            if not line.startswith("#")
        }

    def quiet(self) -> bool:
        """Whether nothing is under way and no page is in use."""
        found = self.figures()
        return not any(
            found[f"awqkit_{name}"] for name in ("open", "running", "waiting", "cache_pages_used")
        )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(ENDS_WITHIN)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"is served at (http://[^ ]+)/v1", line):
                self.url = found[1]
                self._ready.set()
        self._ready.set()


def eventually(condition: Callable[[], bool], *, within: float = 60.0) -> None:
    """Fails unless the condition comes to hold."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def chat_body(text: str = "Tell me a story.", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "demo", "messages": messages} | more


def texts(chunks: Sequence[Any]) -> str:
    """The text of a streamed chat completion."""
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


class Listener:
    """A streamed answer that is read in the background until it ends or close() is called."""

    def __init__(self, server: Server, body: dict[str, Any], **options: Any) -> None:
        self.client = httpx.Client(timeout=60.0)
        self.events: list[Any] = []
        self.status = 0
        self.ended = threading.Event()
        self.started = threading.Event()
        arguments = (server.url, body | {"stream": True}, options)
        self.thread = threading.Thread(target=self._listen, args=arguments, daemon=True)
        self.thread.start()

    def _listen(self, url: str, body: dict[str, Any], options: Any) -> None:
        try:
            with self.client.stream(
                "POST", f"{url}/v1/chat/completions", json=body, **options
            ) as response:
                self.status = response.status_code
                for line in response.iter_lines():
                    self.started.set()
                    if line.startswith("data: {"):
                        self.events.append(json.loads(line[6:]))
        except httpx.HTTPError:
            pass  # Closed, by this side or the other.
        self.started.set()
        self.ended.set()

    def close(self) -> None:
        self.client.close()
