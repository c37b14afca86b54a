"""Sums over ranks: gloo between processes that compute on the CPU, NCCL between GPUs of a host.

Small sums of GPUs that reach each other's memory go through own kernels instead (peers.py).
"""

from __future__ import annotations

import threading
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from awqkit_runtime.engine.parallel.peers import Peers
from awqkit_runtime.engine.parallel.shares import Share

LOOPBACK = "127.0.0.1"
#: For ranks to find each other, and for one to wait for another in a step.
PATIENCE = timedelta(seconds=120)


def arrival_key(rank: int) -> str:
    """Under which a rank that is about to connect leaves word in the store."""
    return f"rank {rank} is here"


class Communicator:
    """Connects a rank with the others, which connect at the same time through the same store.

    RuntimeError, here and in every call, when another rank is gone.
    """

    def __init__(self, store: dist.Store, share: Share, device: torch.device) -> None:
        self._store = store
        self._share = share
        self._device = device
        self._aborting, self._aborted = threading.Lock(), False
        #: What small sums go through; None where they go the way of the large ones.
        self.peers: Peers | None = None
        self._group: Any = (
            _gloo(store, share) if device.type == "cpu" else _nccl(store, share, device)
        )
        # NCCL connects, and takes its buffers, with the first call: before memory is measured.
        self.sum_(torch.zeros(1, device=device))

    def sum_(self, tensor: Tensor) -> Tensor:
        """Adds, in place, what the other ranks have at this point."""
        self._group.allreduce([tensor]).wait()
        return tensor

    def connect_peers(self, *, rows: int, width: int) -> None:
        """Lets kernels add up what ranks have of up to so many rows of so many BF16 numbers.

        All ranks call this at the same time, on GPUs that reach each other (reach_each_other).
        """
        try:
            self.peers = Peers(
                *(self._store, self._share, self._device),
                rows=rows,
                width=width,
                agree=lambda mine: self.least(int(mine)) == 1,
            )
        except RuntimeError as error:
            warnings.warn(
                f"The GPUs add up through NCCL, and steps are slower, because {error}.",
                stacklevel=2,
            )

    def least(self, number: int) -> int:
        """The smallest of all ranks' numbers."""
        shared = torch.tensor([number], dtype=torch.int64, device=self._device)
        options: Any = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MIN
        self._group.allreduce([shared], options).wait()
        return int(shared)

    def abort(self) -> None:
        """Ends what waits for a rank that is gone, for good; gloo notices by itself."""
        with self._aborting:
            if self._aborted or self._device.type == "cpu":
                return
            self._aborted = True
        if self.peers is not None:
            self.peers.give_up()
        self._group.abort()


def _gloo(store: dist.Store, share: Share) -> dist.ProcessGroupGloo:
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=LOOPBACK)]
    options._timeout = PATIENCE
    return dist.ProcessGroupGloo(store, share.rank, share.ranks, options)


def _nccl(store: dist.Store, share: Share, device: torch.device) -> dist.ProcessGroupNCCL:
    torch.cuda.set_device(device)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = PATIENCE
    return dist.ProcessGroupNCCL(store, share.rank, share.ranks, options)
