"""Several "processes" of one conversion as threads of this one: cheap, and to the last bit."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Board:
    """Where threads that make the same calls in the same order leave things for each other."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count, timeout=60)
        self.notes: dict[int, Any] = {}

    def exchange(self, rank: int, note: Any) -> dict[int, Any]:
        self.notes[rank] = copy.deepcopy(note)  # which goes on changing here
        self.barrier.wait()
        seen = dict(self.notes)
        self.barrier.wait()
        return seen


class ThreadRank:
    def __init__(self, board: Board, rank: int) -> None:
        self.rank, self.count, self._board = rank, board.count, board

    def broadcast(self, value: Any, source: int) -> Any:
        return self._board.exchange(self.rank, value)[source]

    def total(self, counts: Tensor) -> Tensor:
        return torch.stack(list(self._board.exchange(self.rank, counts).values())).sum(0)

    def collect(self, rows: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        parts = self._board.exchange(self.rank, rows)
        assert [len(parts[rank]) for rank in range(self.count)] == list(sizes)
        return [] if self.rank else [parts[rank] for rank in range(self.count)]


def in_threads(count: int, work: Callable[[ThreadRank], Any]) -> list[Any]:
    """work(rank)'s results, by rank; raises what any of them raised first."""
    board, results, errors = Board(count), [None] * count, []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRank(board, rank))
        except threading.BrokenBarrierError:
            pass
        except Exception as error:  # noqa: BLE001  (raised below)
            errors.append(error)
            board.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
