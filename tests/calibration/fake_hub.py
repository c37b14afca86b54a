"""A hub on this machine, with the few answers that reading a data set takes.

Run as a script, it is the reader: a process of its own, since the libraries look at HF_ENDPOINT
only when they are imported. It reads the data sets named on the command line and prints, for
each, the outcome and the seconds it took, as JSON.
"""

import contextlib
import hashlib
import itertools
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PIECE_BYTES = 1 << 16  # the reader may hang up after each
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    error_code: str = ""
    disabled: bool = False
    missing_content: bool = False  # listed files whose content is gone


@dataclass
class FakeHub:
    repositories: dict[str, Repository]
    url: str = ""
    bytes_sent: Counter[str] = field(default_factory=Counter)  # of file content, by repository
    requests: list[str] = field(default_factory=list)


@contextlib.contextmanager
def serving(repositories: dict[str, Repository]) -> Iterator[FakeHub]:
    hub = FakeHub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            self._answer(self.rfile.read(length))

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, posted: bytes = b"") -> None:
            hub.requests.append(f"{self.command} {self.path}")
            match = re.match(r"/(?:api/)?datasets/([^/?]+/[^/?]+)(?:/([^?]*))?", self.path)
            repository = hub.repositories.get(match[1]) if match else None
            if match is None or repository is None:
                self._send(404, {"error": "not found"}, **{"X-Error-Code": "RepoNotFound"})
            elif repository.status != 200:
                code = {"X-Error-Code": repository.error_code} if repository.error_code else {}
                self._send(repository.status, {"error": "refused"}, **code)
            elif self.path.startswith("/api/"):
                self._answer_api(match[1], repository, match[2] or "", posted)
            else:
                self._send_file(match[1], repository, (match[2] or "").split("/", 2)[-1])

        def _answer_api(self, name: str, repository: Repository, rest: str, posted: bytes) -> None:
            if rest.startswith("tree/"):
                folder = "/".join(rest.split("/")[2:])
                self._send(200, _entries(repository, folder))
            elif rest.startswith("paths-info/"):
                wanted = json.loads(posted)["paths"] if posted.startswith(b"{") else _form(posted)
                entries = _entries(repository, "", recursive=True)
                self._send(200, [entry for entry in entries if entry["path"] in wanted])
            else:
                self._send(200, _info(name, repository))

        def _send_file(self, name: str, repository: Repository, path: str) -> None:
            content = repository.files.get(path)
            if content is None or (repository.missing_content and path != "README.md"):
                self._send(404, {"error": "no entry"}, **{"X-Error-Code": "EntryNotFound"})
                return
            wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start, end = 0, len(content)
            if wanted:
                start, end = int(wanted[1]), min(int(wanted[2] or end - 1) + 1, end)
            headers = {
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            if wanted:
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            self._send(206 if wanted else 200, content[start:end], name, **headers)

        def _send(self, status: int, body: Any, repository_name: str = "", **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    for start in range(0, len(data), PIECE_BYTES):
                        self.wfile.write(data[start : start + PIECE_BYTES])
                        hub.bytes_sent[repository_name] += PIECE_BYTES

    return Handler


def _form(posted: bytes) -> list[str]:
    from urllib.parse import parse_qs

    return parse_qs(posted.decode()).get("paths", [])


def _entries(repository: Repository, folder: str, *, recursive: bool = False) -> list[dict]:
    entries: dict[str, dict] = {}
    for path, content in repository.files.items():
        if folder and not path.startswith(f"{folder}/"):
            continue
        rest = path[len(folder) + 1 :] if folder else path
        if "/" in rest and not recursive:
            directory = f"{folder}/{rest.split('/')[0]}".lstrip("/")
            entries[directory] = {"type": "directory", "path": directory, "oid": "0" * 40}
        else:
            oid = hashlib.sha1(content).hexdigest()
            entries[path] = {"type": "file", "path": path, "oid": oid, "size": len(content)}
    return list(entries.values())


def _info(name: str, repository: Repository) -> dict[str, Any]:
    return {
        "id": name,
        "sha": COMMIT,
        "private": False,
        "gated": False,
        "disabled": repository.disabled,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [{"rfilename": path} for path in repository.files],
    }


def _read_all() -> None:
    import sys
    import time

    from awqkit.calibration.sources import open_source
    from awqkit.errors import CalibrationError

    outcomes = []
    for name, documents in (argument.rsplit("=", 1) for argument in sys.argv[1:]):
        start = time.perf_counter()
        try:
            source = open_source(name, render_chat=lambda messages: messages[0]["content"])
            texts = source.documents(0)
            outcome = {"texts": list(itertools.islice(texts, int(documents)))}
        except CalibrationError as error:
            outcome = {"error": str(error)}
        outcomes.append({"name": name, "seconds": time.perf_counter() - start, **outcome})
    print(json.dumps(outcomes))


if __name__ == "__main__":
    _read_all()
