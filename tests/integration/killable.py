"""Runs conversions that kill themselves at a chosen event: python killable.py < JOBS.

JOBS: JSON, a list of {"args": of awqkit-convert, "kill_at": an event's number or null}. One line of
JSON comes back for each: {"signal", "code", "events", "text"}. Events are whatever the conversion
does to files, and every site that it finishes. Each job is a fork, so that torch is imported once.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import awqkit.openmp  # noqa: F401  (before torch)
from awqkit import journal
from awqkit import run as block_by_block
from awqkit.checkpoint.shard_file import ShardFile
from awqkit.checkpoint.writer import CheckpointWriter
from awqkit.cli import convert

SMALL_SHARD = 60_000
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


class Killer:
    """Counts events, and ends the process without warning at one of them."""

    def __init__(self, kill_at: int | None, root: str) -> None:
        self.events = 0
        self._kill_at = kill_at
        self._root = root

    def event(self) -> None:
        self.events += 1
        if self.events == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, name: str, args: tuple[Any, ...]) -> None:
        if name in FILE_EVENTS and isinstance(args[0], str) and args[0].startswith(self._root):
            self.event()


def install(killer: Killer) -> None:
    """Save after every block, cut shards small, and let the killer see what happens."""
    journal.SAVING_SHARE = float("inf")
    CheckpointWriter.__init__.__kwdefaults__["max_shard_bytes"] = SMALL_SHARD
    write, site_done = ShardFile._write_bytes, block_by_block._site_done

    def torn_write(self: ShardFile, data: memoryview) -> None:
        half = len(data) // 2
        write(self, data[:half])
        killer.event()
        write(self, data[half:])

    def counted_site(*args: Any) -> None:
        killer.event()
        site_done(*args)

    ShardFile._write_bytes = torn_write  # type: ignore[method-assign]
    block_by_block._site_done = counted_site
    sys.addaudithook(killer.audit)


def run(job: dict[str, Any], answer: Path) -> None:
    """In the child: convert, and leave what happened in a file."""
    killer, text = Killer(job["kill_at"], job["root"]), io.StringIO()
    install(killer)
    code = 0
    try:
        with redirect_stdout(text), redirect_stderr(text):
            convert(job["args"])
    except SystemExit as end:
        code = int(end.code or 0)
    answer.write_text(json.dumps({"code": code, "events": killer.events, "text": text.getvalue()}))


def main() -> None:
    for job in json.load(sys.stdin):
        answer = Path(tempfile.mkdtemp()) / "answer.json"
        child = os.fork()
        if child == 0:
            try:
                run(job, answer)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        known = json.loads(answer.read_text()) if answer.exists() else {"text": ""}
        print(json.dumps({"signal": os.WTERMSIG(status), **known}), flush=True)


if __name__ == "__main__":
    main()
