"""Stored tensors onto a GPU, through pinned memory, which it copies from while the host goes on.

Fresh memory of the host costs a fault for each of its pages, and the driver copies what is not
pinned a second time. Pinned memory costs more to get, but torch keeps it: a tensor is read into
what one before it was copied from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from awqkit.checkpoint.safetensors_file import (
    StoredTensor,
    TensorReader,
    read_tensor,
    stored_dtype,
)

#: Bytes of a large tensor that are read at once, …
_PART_BYTES = 2**23
#: … and by how many threads: each copies out of the page cache as fast as a core can.
_THREADS = 3


def reader_for(device: torch.device) -> TensorReader:
    """Into memory of the host that the device copies from fastest."""
    return _read_pinned if device.type == "cuda" else read_tensor


def _read_pinned(entry: StoredTensor, rows: Sequence[range] | None = None) -> Tensor:
    try:
        return read_tensor(entry, rows, pinned=True)
    except RuntimeError:
        # The system lends no more of it; other memory is slower, and the same.
        return read_tensor(entry, rows)


@contextmanager
def reading_onto(device: torch.device) -> Iterator[TensorReader]:
    """Onto the device itself, part by part, so that none of a large tensor lies twice."""
    if device.type == "cpu":
        yield read_tensor
        return
    pool = ThreadPoolExecutor(_THREADS)
    try:
        yield partial(_read_onto, device, pool)
    finally:
        pool.shutdown(cancel_futures=True)
        give_pinned_back(device)


def _read_onto(
    device: torch.device,
    pool: ThreadPoolExecutor,
    entry: StoredTensor,
    rows: Sequence[range] | None,
) -> Tensor:
    whole = [range(entry.shape[0])] if rows is None else rows
    shape = (sum(map(len, whole)), *entry.shape[1:])
    target = torch.empty(shape, dtype=stored_dtype(entry), device=device)
    read = reader_for(device)
    row_bytes = math.prod(entry.shape[1:]) * target.itemsize

    def copy(place: tuple[int, range]) -> None:
        first, part = place
        target[first : first + len(part)].copy_(read(entry, [part]), non_blocking=True)

    for _ in pool.map(copy, _places(whole, max(1, _PART_BYTES // row_bytes))):
        pass
    return target


def _places(rows: Sequence[range], most: int) -> Iterator[tuple[int, range]]:
    """Ranges of at most so many rows, each with its first row's place among all of them."""
    first = 0
    for some in rows:
        for start in range(some.start, some.stop, most):
            part = range(start, min(start + most, some.stop))
            yield first, part
            first += len(part)


def give_pinned_back(device: torch.device) -> None:
    """What reading took of the host's pinned memory, once all of it is copied."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch._C._host_emptyCache()
