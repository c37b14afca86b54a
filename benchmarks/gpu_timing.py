"""Times of work on a GPU, and the ceilings of the very machine that they are compared with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

REPLAYS = 15
#: Clocks need some milliseconds to settle after other work.
WARM_UP_SECONDS = 0.03


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """bandwidth in bytes a second, read and written; bf16 in operations a second."""

    bandwidth: float
    bf16: float


def microseconds(work: Callable[[], object]) -> float:
    """The median time of one replay of a CUDA graph of this work."""
    work()  # Whatever is compiled, loaded or allocated once is not what is measured.
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    _settle(graph)
    starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS)] for _ in "ab")
    for start, end in zip(starts, ends, strict=True):
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)]
    return statistics.median(times) * 1e3


def _settle(graph: torch.cuda.CUDAGraph) -> None:
    end = time.monotonic() + WARM_UP_SECONDS
    while time.monotonic() < end:
        graph.replay()
        torch.cuda.synchronize()


def measure_ceilings() -> Ceilings:
    """An addition to 4 GiB of numbers, and a product of random 8192 × 8192 matrices."""
    size = 2**32
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in "ab")
    product = microseconds(lambda: torch.mm(a, b))
    return Ceilings(bandwidth=2 * size / _copy(size) * 1e6, bf16=2 * 8192**3 / product * 1e6)


def _copy(size: int) -> float:
    # A plain copy in a graph may be left to the copy engine, which is slower than the cores.
    source = torch.ones(size // 4, device="cuda")
    target = torch.empty_like(source)
    return microseconds(lambda: torch.add(source, 1.0, out=target))
