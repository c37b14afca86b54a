"""An OpenAI-compatible server that answers by script and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Script:
    """What the server does with the next requests."""

    words: list[str] = field(default_factory=lambda: ["Hello", " there", "."])
    seconds_a_word: float = 0.0
    finish_reason: str = "stop"
    #: Words after which the connection breaks; None: it does not.
    break_after: int | None = None
    api_key: str | None = None
    models: list[str] = field(default_factory=lambda: ["scripted"])
    metrics: str = ""
    #: Status and message of a refusal of every chat.
    refusal: tuple[int, str] | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    #: Answers whose client went away before they were complete.
    deserted: int = 0


@contextmanager
def scripted_server(script: Script) -> Iterator[str]:
    """Serves on a free port of the loopback; gives the address without /v1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(script))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _handler(script: Script) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on the test's output."""

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._send(200, script.metrics.encode(), "text/plain")
            elif self.path != "/v1/models":
                self._fail(404, "no such path")
            elif self._allowed():
                data = [{"id": name, "object": "model"} for name in script.models]
                self._json(200, {"object": "list", "data": data})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/v1/chat/completions":
                self._fail(404, "no such path")
            elif self._allowed():
                script.requests.append(json.loads(body))
                if script.refusal is None:
                    self._stream()
                else:
                    self._fail(*script.refusal)

        def _stream(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            try:
                for number, word in enumerate(script.words):
                    if number == script.break_after:
                        return
                    time.sleep(script.seconds_a_word)
                    self._event([{"index": 0, "delta": {"content": word}}])
                self._event([{"index": 0, "delta": {}, "finish_reason": script.finish_reason}])
                usage = {"prompt_tokens": 7, "completion_tokens": len(script.words)}
                self._event([], usage | {"total_tokens": 7 + len(script.words)})
                self.wfile.write(b"data: [DONE]\n\n")
            except (BrokenPipeError, ConnectionResetError):
                script.deserted += 1

        def _event(self, choices: list[Any], usage: dict[str, int] | None = None) -> None:
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
            event = chunk | {"choices": choices, "usage": usage}
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.flush()

        def _allowed(self) -> bool:
            given = self.headers.get("Authorization")
            if script.api_key is None or given == f"Bearer {script.api_key}":
                return True
            self._fail(401, "no valid key")
            return False

        def _fail(self, status: int, message: str) -> None:
            self._json(status, {"error": {"message": message, "type": "refused", "code": status}})

        def _json(self, status: int, content: Any) -> None:
            self._send(status, json.dumps(content).encode(), "application/json")

        def _send(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler
