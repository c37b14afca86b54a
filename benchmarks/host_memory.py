"""The most memory that this process itself held; pages of mapped files are the system's."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL_SECONDS = 0.05


class Peak:
    bytes = 0


@contextmanager
def host_peak() -> Iterator[Peak]:
    """Watches while the context lasts."""
    peak, over = Peak(), threading.Event()

    def watch() -> None:
        while not over.wait(INTERVAL_SECONDS):
            peak.bytes = max(peak.bytes, _resident_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
        peak.bytes = max(peak.bytes, _resident_bytes())


def _resident_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    sizes = re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, flags=re.MULTILINE)
    return 1024 * sum(int(size) for size in sizes)
