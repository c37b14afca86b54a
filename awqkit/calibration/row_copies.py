"""Rows that wait on the host, on their way to a GPU and back while others are worked on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def on_device(rows: Tensor, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """rows [n, …] on the device, batch_size at a time.

    Of rows on the host each batch is copied beside the work on the one before, and lies where it
    is until the next one is asked for.
    """
    batches = rows.split(batch_size) if len(rows) else ()
    if device.type != "cuda" or rows.is_cuda:
        yield from batches
        return
    copying, working = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    buffers = [torch.empty_like(batch, device=device) for batch in batches[:2]]
    arrived: list[torch.cuda.Event] = []

    def fetch(number: int) -> None:
        copying.wait_stream(working)  # which may still read what the buffer held
        with torch.cuda.stream(copying):
            batch = batches[number]
            buffers[number % 2][: len(batch)].copy_(batch, non_blocking=True)
            arrived.append(copying.record_event())

    for number, batch in enumerate(batches):
        for ahead in range(len(arrived), min(number + 2, len(batches))):
            fetch(ahead)
        working.wait_event(arrived[number])
        yield buffers[number % 2][: len(batch)]


class Returns:
    """Takes results from a device to where they belong; they are there once `wait` returns."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None

    def put(self, place: Tensor, result: Tensor) -> None:
        """place: on the host or on the device; result, on the device, must not change later."""
        if self._copying is None or place.is_cuda:
            place.copy_(result)
            return
        self._copying.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copying):
            place.copy_(result, non_blocking=True)
        result.record_stream(self._copying)

    def wait(self) -> None:
        if self._copying is not None:
            self._copying.synchronize()
