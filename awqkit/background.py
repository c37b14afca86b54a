"""Work that goes on beside the main thread's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from awqkit.device import choose_gpu


class Background:
    """One task at a time beside a GPU; on a CPU, where every core computes, a task runs at once."""

    def __init__(self, device: torch.device) -> None:
        self._thread = (
            ThreadPoolExecutor(1, initializer=choose_gpu, initargs=(device,))
            if device.type == "cuda"
            else None
        )
        self._running: Future[None] | None = None

    def run(self, task: Callable[[], None]) -> None:
        """Begin a task when the one before has ended; raises what that one raised."""
        self.wait()
        if self._thread is None:
            task()
        else:
            self._running = self._thread.submit(task)

    def wait(self) -> None:
        """Return when the task has ended; raises what it raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Let the task end, whatever comes of it."""
        if self._thread is not None:
            self._thread.shutdown()
