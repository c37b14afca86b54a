"""What a process of a shared conversion asks of the others; alone, it has no others to ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


class Ranks(Protocol):
    """rank: which of `count` processes this one is. All make the same calls in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def count(self) -> int: ...

    def broadcast(self, value: T | None, source: int) -> T:
        """What the process `source` passes here, to the last bit; the others may pass None."""

    def total(self, counts: Tensor) -> Tensor:
        """The sum over all processes of counts, int64 of any shape."""

    def collect(self, rows: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Each process's rows on the host of the first, which alone is given them; else nothing.

        rows: [n, …], this process's, on any device.  sizes: each process's n.
        """


class Alone:
    """The only process."""

    rank = 0
    count = 1

    def broadcast(self, value: T | None, source: int) -> T:
        """What was passed."""
        assert value is not None
        return value

    def total(self, counts: Tensor) -> Tensor:
        """What was passed."""
        return counts

    def collect(self, rows: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """What was passed, where it lies."""
        return [rows]


ALONE = Alone()


def shared_out(ranks: Ranks, works: Sequence[Callable[[], T]]) -> list[T]:
    """The results of all works, each done by one process alone, so that all know the same."""
    own = {
        number: work() for number, work in enumerate(works) if number % ranks.count == ranks.rank
    }
    return [
        ranks.broadcast(own.pop(number, None), source=number % ranks.count)
        for number in range(len(works))
    ]


def in_turns(ranks: Ranks, items: Sequence[T]) -> list[Sequence[T]]:
    """The items in groups of as many as there are processes, for `shared_out`."""
    return [items[start : start + ranks.count] for start in range(0, len(items), ranks.count)]
