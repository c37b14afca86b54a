"""Timing of repeated calls on a CPU or a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

#: More repetitions tell nothing new.
_MOST_CALLS = 200


def time_calls(call: Callable[[], object], device: torch.device, *, seconds: float) -> list[float]:
    """Seconds of each of several calls, after one that is not counted.

    Stops before `seconds` are over for all of them together, as far as one call allows.
    """
    timed = partial(_time_on_gpu, device) if device.type == "cuda" else _time_on_host
    return _repeat(partial(timed, call), seconds=seconds)


def time_steps(call: Callable[[], object], *, seconds: float) -> list[float]:
    """As time_calls, of calls that wait for the device themselves, if only for the last one's work.

    Then the host's clock tells how long each took in a row of them, and what is launched while the
    device is busy costs nothing.
    """
    return _repeat(partial(_time_on_host, call), seconds=seconds)


def _repeat(timed: Callable[[], float], *, seconds: float) -> list[float]:
    start = time.perf_counter()
    timed()
    times: list[float] = []
    while not times or (
        len(times) < _MOST_CALLS and time.perf_counter() - start + times[-1] < seconds
    ):
        times.append(timed())
    return times


def _time_on_host(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _time_on_gpu(device: torch.device, call: Callable[[], object]) -> float:
    """From when the GPU reaches the call to when it is through with it."""
    stream = torch.cuda.current_stream(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record(stream)
    call()
    end.record(stream)
    end.synchronize()
    return begin.elapsed_time(end) / 1000
