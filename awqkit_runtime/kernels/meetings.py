"""Meetings of GPUs whose kernels write into each other's memory: what csrc/cuda/rank_packets.cuh
needs to know.

Nothing here asks whose memory it is, so the ranks of a test may share one GPU.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from torch import Tensor

#: Ranks that a kernel takes.
MOST_RANKS = 8
#: Bytes of a place: two packets.
_PLACE_BYTES = 16
#: Numbers of BF16 that a place carries.
NUMBERS_A_PLACE = 4
#: Rows are read in pieces of so many numbers.
_MULTIPLE = 8
#: A rank writes into one slot while the content of another is read.
_PARITIES = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Meetings:
    """One kind of meeting as one rank takes part in it, kernel after kernel on one stream.

    All ranks enqueue the same meetings in the same order.
    """

    rank: int
    #: Of every rank, zero at first: the address of inbox_bytes() as this rank's device reaches it.
    inboxes: tuple[int, ...]
    #: int32 [rows], zero at first: the meetings that each row has had.
    counts: Tensor
    #: int32 [1] in pinned memory: not 0 once a rank is gone; kernels then wait no longer.
    given_up: Tensor

    @property
    def rows(self) -> int:
        """That a meeting may have at most."""
        return self.counts.shape[0]

    def as_argument(self) -> Any:
        """`Ranks`, which kernels take by value."""
        inboxes = (ctypes.c_void_p * MOST_RANKS)(*self.inboxes)
        return _Ranks(inboxes, self.given_up.data_ptr(), self.rank, len(self.inboxes))


def inbox_bytes(*, ranks: int, rows: int, places: int) -> int:
    """Of one rank's memory for meetings of up to so many rows with so many places each."""
    return _PARITIES * ranks * rows * places * _PLACE_BYTES


def sum_places(n: int) -> int:
    """Places of a row of n numbers that are added up."""
    return n // NUMBERS_A_PLACE


def can_sum(n: int, ranks: int) -> bool:
    """Whether kernels add up rows of n numbers that so many ranks have."""
    return n % _MULTIPLE == 0 and 1 < ranks <= MOST_RANKS


class _Ranks(ctypes.Structure):
    _fields_ = (
        ("inbox", ctypes.c_void_p * MOST_RANKS),
        ("given_up", ctypes.c_void_p),
        ("rank", ctypes.c_int32),
        ("num_ranks", ctypes.c_int32),
    )
