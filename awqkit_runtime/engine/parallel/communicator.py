"""Sums over ranks: gloo between processes that compute on the CPU, NCCL between GPUs of a host."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

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
        self._device = device
        self._group: Any = (
            _gloo(store, share) if device.type == "cpu" else _nccl(store, share, device)
        )
        # NCCL connects, and takes its buffers, with the first call: before memory is measured.
        self.sum_(torch.zeros(1, device=device))

    def sum_(self, tensor: Tensor) -> Tensor:
        """Adds, in place, what the other ranks have at this point."""
        self._group.allreduce([tensor]).wait()
        return tensor

    def least(self, number: int) -> int:
        """The smallest of all ranks' numbers."""
        shared = torch.tensor([number], dtype=torch.int64, device=self._device)
        options: Any = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MIN
        self._group.allreduce([shared], options).wait()
        return int(shared)

    def abort(self) -> None:
        """Ends a call that waits for a rank that is gone; gloo notices by itself."""
        if self._device.type == "cuda":
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
