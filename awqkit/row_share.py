"""Which calibration rows a process holds: whole batches in turn, of both kinds of rows.

A process passes on the very batches that one alone would pass on, and sums are taken batch by
batch in the order of all rows: so the number of processes changes no bit of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Share of the calibration rows that judge the search and are hidden from it.
JUDGING_SHARE = 8


@dataclass(frozen=True, kw_only=True)
class RowShare:
    """judging, searched: indexes among all rows, in the order in which the process holds them.

    Only where there is but one row in all it is in both, and held once.
    """

    judging: tuple[int, ...]
    searched: tuple[int, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """All that the process holds."""
        return self.judging if self._is_one_row else (*self.judging, *self.searched)

    def parts(self, held: Tensor) -> tuple[Tensor, ...]:
        """held [n, …], cut where batches do not go across."""
        return (held,) if self._is_one_row else (self.split(held)[1], self.split(held)[0])

    def split(self, held: Tensor) -> tuple[Tensor, Tensor]:
        """Of held [n, …], those that the search sees and those that judge it."""
        judges = len(self.judging)
        return held if self._is_one_row else held[judges:], held[:judges]

    @property
    def _is_one_row(self) -> bool:
        return bool(self.judging) and self.judging == self.searched


def share_of(total: int, batch_size: int, *, rank: int, count: int) -> RowShare:
    """What process `rank` of `count` holds of `total` rows."""
    judges = max(1, total // JUDGING_SHARE)
    searched = range(judges, total) if total > 1 else range(1)
    return RowShare(
        judging=_in_turn(range(judges), batch_size, rank, count),
        searched=_in_turn(searched, batch_size, rank, count),
    )


def split_rows(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that the search sees, and those that only judge it; the same where there is but one."""
    return share_of(len(hidden), len(hidden), rank=0, count=1).split(hidden)


def in_order(parts: Sequence[Tensor], shares: Sequence[Sequence[int]]) -> Tensor:
    """All rows on the host, from each process's part [n, …] and the indexes of its rows."""
    total = sum(map(len, shares))
    rows = torch.empty(total, *parts[0].shape[1:], dtype=parts[0].dtype)
    for part, share in zip(parts, shares, strict=True):
        for index, row in zip(share, part, strict=True):
            rows[index].copy_(row)
    return rows


def _in_turn(rows: range, batch_size: int, rank: int, count: int) -> tuple[int, ...]:
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return tuple(row for batch in batches[rank::count] for row in batch)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """calibration, held_out: what each process holds, by its rank; own: this process's rank."""

    calibration: tuple[RowShare, ...]
    held_out: tuple[tuple[int, ...], ...]
    own: int

    @classmethod
    def of(cls, *, rows: int, held_out: int, batch_size: int, rank: int, count: int) -> Shares:
        """rows, held_out: how many there are of each in all."""
        ranks = range(count)
        return cls(
            calibration=tuple(share_of(rows, batch_size, rank=r, count=count) for r in ranks),
            held_out=tuple(tuple(range(held_out)[r::count]) for r in ranks),
            own=rank,
        )
