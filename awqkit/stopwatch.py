"""Where the time goes, by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class Stopwatch:
    """seconds: by stage, added up over everything that was timed under its name."""

    def __init__(self, device: torch.device) -> None:
        """device: where the work is done; a GPU's has to be waited for."""
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds that the context takes to those of a stage."""
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.add({stage: time.perf_counter() - start})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add what was measured elsewhere."""
        for stage, more in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + more
