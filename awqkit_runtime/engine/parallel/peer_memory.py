"""Memory of a GPU that the other ranks' GPUs write into, each rank a process of one host."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist

from awqkit_runtime.engine.parallel.shares import Share
from awqkit_runtime.kernels.cuda.launch import checked

#: Of a handle, CU_IPC_HANDLE_SIZE.
_HANDLE_BYTES = 64


class PeerMemory:
    """So many bytes on every rank's GPU, zero at first, as this rank reaches them."""

    def __init__(
        self,
        store: dist.Store,
        share: Share,
        device: torch.device,
        size: int,
        *,
        agree: Callable[[bool], bool],
    ) -> None:
        """All ranks make theirs at the same time, after the GPUs were found to reach each other.

        agree: whether all ranks say yes. RuntimeError on all of them where one cannot be reached.
        """
        with torch.cuda.device(device):
            torch.cuda.current_stream(device).synchronize()  # The driver needs torch's context.
            own, error = _attempt(lambda: _allocate(size))
            if own is not None:
                store.set(_key(share.rank), _export(own).hex())
            if not agree(own is not None):
                raise RuntimeError("a GPU has no memory for others to write to") from error
            others = [rank for rank in range(share.ranks) if rank != share.rank]
            opened, error = _attempt(
                lambda: {r: _open(bytes.fromhex(store.get(_key(r)).decode())) for r in others}
            )
            if not agree(opened is not None):
                raise RuntimeError("a GPU cannot reach the memory of another") from error
        assert own is not None and opened is not None
        #: By rank.
        self.addresses = tuple(opened.get(rank, own) for rank in range(share.ranks))
        # Not at the interpreter's end, when the driver may be gone, and all memory with it.
        weakref.finalize(self, _release, own, [*opened.values()], device).atexit = False


def reach_each_other(device: torch.device, ranks: int) -> bool:
    """Whether so many GPUs, from this one on, can all write into each other's memory.

    Said of a machine that has none, whose plan is for another one.
    """
    if device.type != "cuda":
        return False
    first, present = device.index or 0, torch.cuda.device_count()
    numbers = range(first, first + ranks)
    if numbers[-1] >= present:
        return present == 0
    return all(torch.cuda.can_device_access_peer(a, b) for a in numbers for b in numbers if a != b)


def _key(rank: int) -> str:
    return f"memory of rank {rank}"


def _attempt(work: Callable[[], Any]) -> tuple[Any, RuntimeError | None]:
    try:
        return work(), None
    except RuntimeError as error:
        return None, error


def _allocate(size: int) -> int:
    """Its address."""
    driver = _driver()
    address = int(checked(driver.cuMemAlloc(size)))
    checked(driver.cuMemsetD8(address, 0, size))
    checked(driver.cuCtxSynchronize())
    return address


def _export(address: int) -> bytes:
    handle = checked(_driver().cuIpcGetMemHandle(address))
    return ctypes.string_at(handle.getPtr(), _HANDLE_BYTES)


def _open(exported: bytes) -> int:
    """The address here of what another process exported."""
    driver = _driver()
    handle = driver.CUipcMemHandle()
    ctypes.memmove(handle.getPtr(), exported, _HANDLE_BYTES)
    lazily = driver.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
    return int(checked(driver.cuIpcOpenMemHandle(handle, int(lazily))))


def _release(own: int, opened: list[int], device: torch.device) -> None:
    driver = _driver()
    with suppress(RuntimeError), torch.cuda.device(device):  # A rank that is gone took its own.
        for address in opened:
            checked(driver.cuIpcCloseMemHandle(address))
        checked(driver.cuMemFree(own))


def _driver() -> Any:
    from cuda.bindings import driver

    return driver
