"""Processes of one host that talk through torch.distributed: NCCL between GPUs, Gloo on CPUs."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from awqkit.ranks.errors import LostRankError
from awqkit.ranks.parcel import pack, raw_bytes, unpack

T = TypeVar("T")

#: A process may wait as long as another works; one that has died is noticed by their parent.
PATIENCE = timedelta(days=30)


class Group:
    """All of `count` processes, once each has come to the meeting place, a file that is new."""

    def __init__(self, *, rank: int, count: int, device: torch.device, meeting: Path) -> None:
        self.rank = rank
        self.count = count
        self._device = device
        with _reporting_loss():
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                init_method=f"file://{meeting}",
                rank=rank,
                world_size=count,
                timeout=PATIENCE,
                device_id=device if device.type == "cuda" else None,
            )

    def broadcast(self, value: T | None, source: int) -> T:
        """See Ranks. Tensors arrive on this process's device, or on the host if they were there."""
        with _reporting_loss():
            if self.rank != source:
                return self._received(source)
            assert value is not None
            self._send(value)
            return value

    def total(self, counts: Tensor) -> Tensor:
        """See Ranks."""
        counts = counts.to(self._device).clone()
        with _reporting_loss():
            dist.all_reduce(counts)
        return counts

    def collect(self, rows: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """See Ranks."""
        with _reporting_loss():
            if self.rank:
                for row in rows:
                    _pass(dist.isend, raw_bytes(row.to(self._device).contiguous()), 0)
                return []
            shapes = [(size, *rows.shape[1:]) for size in sizes[1:]]
            others = [torch.empty(shape, dtype=rows.dtype) for shape in shapes]
            for source, theirs in enumerate(others, start=1):
                for row in theirs:
                    buffer = torch.empty_like(row, device=self._device)
                    _pass(dist.irecv, raw_bytes(buffer), source)
                    row.copy_(buffer)
            return [rows, *others]

    def _send(self, value: object) -> None:
        data, tensors = pack(value)
        claims = [(t.dtype, tuple(t.shape), t.device.type == "cpu") for t in tensors]
        header = pickle.dumps((data, claims))
        self._from(torch.tensor([len(header)]), self.rank)
        self._from(torch.frombuffer(bytearray(header), dtype=torch.uint8), self.rank)
        for tensor in tensors:
            if tensor.numel():
                self._from(raw_bytes(tensor.contiguous()), self.rank)

    def _received(self, source: int) -> T:  # type: ignore[type-var]
        length = int(self._from(torch.zeros(1, dtype=torch.int64), source))
        header = self._from(torch.empty(length, dtype=torch.uint8), source)
        data, claims = pickle.loads(header.cpu().numpy().tobytes())  # noqa: S301  (our own)
        tensors = []
        for dtype, shape, is_on_host in claims:
            tensor = torch.empty(shape, dtype=dtype, device=self._device)
            if tensor.numel():
                self._from(raw_bytes(tensor), source)
            tensors.append(tensor.cpu() if is_on_host else tensor)
        value: T = unpack(data, tensors)
        return value

    def _from(self, tensor: Tensor, source: int) -> Tensor:
        tensor = tensor.to(self._device)
        dist.broadcast(tensor, src=source)
        return tensor


def _pass(operation: Callable[..., dist.Work | None], tensor: Tensor, peer: int) -> None:
    """Alone, without such a batch, NCCL's users are warned of what it may cost."""
    for work in dist.batch_isend_irecv([dist.P2POp(operation, tensor, peer)]):
        work.wait()


@contextmanager
def _reporting_loss() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(
            f"A process of this conversion lost another one: {str(error).splitlines()[0]}"
        ) from error
