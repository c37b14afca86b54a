"""What the GPUs of a host need to meet in each other's memory, step after step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from awqkit_runtime.engine.parallel.peer_memory import PeerMemory, reach_each_other
from awqkit_runtime.engine.parallel.shares import Share
from awqkit_runtime.kernels.meetings import Meetings, can_sum, inbox_bytes, sum_places
from awqkit_runtime.kernels.rank_choice import CHOICE_PLACES


class Peers:
    """The other ranks' GPUs as a kernel of this one reaches them."""

    def __init__(
        self,
        store: dist.Store,
        share: Share,
        device: torch.device,
        *,
        rows: int,
        width: int,
        agree: Callable[[bool], bool],
    ) -> None:
        """rows: of a step at most; width: the BF16 numbers of a row that is added up.

        agree: whether all ranks say yes. RuntimeError, on all ranks, where they do not get there.
        """
        sizes = _inbox_sizes(ranks=share.ranks, rows=rows, width=width)
        self._memory = PeerMemory(store, share, device, sum(sizes), agree=agree)
        self._given_up = torch.zeros(1, dtype=torch.int32, pin_memory=True)

        def meetings(offset: int) -> Meetings:
            return Meetings(
                rank=share.rank,
                inboxes=tuple(address + offset for address in self._memory.addresses),
                counts=torch.zeros(rows, dtype=torch.int32, device=device),
                given_up=self._given_up,
            )

        #: For rows of `width` numbers, and for tokens.
        self.sums, self.choices = meetings(0), meetings(sizes[0])

    def can_sum(self, part: Tensor) -> bool:
        """Whether part [rows, width] is small enough."""
        return part.dim() == 2 and part.shape[0] <= self.sums.rows

    def give_up(self) -> None:
        """From now on no kernel waits for another rank, and what they compute means nothing."""
        self._given_up.fill_(1)


def peer_bytes(*, ranks: int, rows: int, width: int) -> int:
    """Of each rank's memory that the others write into, for steps of up to so many rows."""
    return sum(_inbox_sizes(ranks=ranks, rows=rows, width=width))


def _inbox_sizes(*, ranks: int, rows: int, width: int) -> list[int]:
    """For sums of rows, and for tokens."""
    return [
        inbox_bytes(ranks=ranks, rows=rows, places=places)
        for places in (sum_places(width), CHOICE_PLACES)
    ]


def ranks_can_meet(width: int, device: torch.device, share: Share) -> bool:
    """can_meet of all ranks, as the one with this device says it; all say the same."""
    first = torch.device(device.type, (device.index or 0) - share.rank)
    return can_meet(width, first, share.ranks)


def can_meet(width: int, device: torch.device, ranks: int) -> bool:
    """Whether kernels add up rows of so many numbers between these GPUs, from this one on."""
    return can_sum(width, ranks) and reach_each_other(device, ranks)
