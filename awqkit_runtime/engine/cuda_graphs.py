"""Work on a GPU as CUDA graphs: launched as a whole, without Python and the driver in between."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Protocol

import torch


class GraphCapture(Protocol):
    """Turns work that was done once into a call that does it again."""

    def capture(self, compute: Callable[[], object]) -> Callable[[], None]:
        """The call repeats what compute enqueues: the same launches on the same tensors.
        RuntimeError where the device refuses.

        compute has run before, with everything loaded and warm; what it makes and gives back is
        lost, so its results must lie in tensors that were there before.
        """


def capture_if_possible(
    graphs: GraphCapture, compute: Callable[[], object], what: str
) -> Callable[[], None] | None:
    """None, and a warning that names `what`, where no graph can be made: it is slower without."""
    try:
        return graphs.capture(compute)
    except RuntimeError as error:
        warnings.warn(
            f"{what} run without a CUDA graph, and so slower, because none could be made: {error}",
            stacklevel=2,
        )
        return None


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures, since cuBLAS keeps what it once had for a stream."""
    return torch.cuda.Stream(device)


class CudaGraphs:
    """Graphs that share one pool of memory, since no two of them run at once."""

    def __init__(self, device: torch.device, *, pool_bytes: int) -> None:
        """pool_bytes: what the intermediate results of any one graph take, set aside now."""
        self._device = device
        self._stream = _capture_stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        # cuBLAS has a workspace for each stream, which must not come out of the pool.
        with torch.cuda.stream(self._stream):
            square = torch.zeros(64, 64, dtype=torch.bfloat16, device=device)
            torch.mm(square, square)
        # Kept, since a pool lives as long as a graph in it. Later graphs get the memory that this
        # one gave back.
        self._first = self.capture(
            lambda: torch.zeros(pool_bytes, dtype=torch.uint8, device=device)
        )

    def capture(self, compute: Callable[[], object]) -> Callable[[], None]:
        # Not torch.cuda.graph(), which first gives all of torch's spare memory back to the driver:
        # what steps need is in there.
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        with torch.cuda.stream(self._stream):
            try:
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                compute()
            except BaseException:
                with suppress(RuntimeError):  # The capture is broken, and no graph comes of it.
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph.replay
