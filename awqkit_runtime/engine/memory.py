"""How much memory is free, and how it is taken."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

import torch

from awqkit_runtime.errors import OutOfMemoryError

_CGROUP_V2 = ("memory.max", "memory.current", "inactive_file")
_CGROUP_V1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file")

#: By the owner: a device, and bytes of it.
_claims: WeakKeyDictionary[object, tuple[torch.device, int]] = WeakKeyDictionary()


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on this device.

    On a GPU torch first gives back what it keeps for later, and what others of this process have
    claimed (claim) does not count.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return max(int(torch.cuda.mem_get_info(device)[0]) - _claimed(device), 0)
    bounds = [_machine_memory(), *_container_memory(Path("/sys/fs/cgroup"))]
    return min(bounds)


def part_of_memory(free: int, device: torch.device, ranks: int) -> int:
    """Bytes of `free` that one rank may use: of a CPU's memory all of them have their part."""
    return free // ranks if device.type == "cpu" else free


def set_aside(size: int, device: torch.device) -> None:
    """Lets torch take so many bytes of a GPU now, from which it serves what steps ask for later."""
    torch.empty(size, dtype=torch.uint8, device=device)


def claim(owner: object, size: int, device: torch.device) -> None:
    """Says that the owner takes so many bytes of a GPU from time to time, until it is gone.

    Torch keeps them for it (set_aside) only until free_memory is asked for.
    """
    _claims[owner] = _numbered(device), size


def _claimed(device: torch.device) -> int:
    return sum(size for place, size in list(_claims.values()) if place == _numbered(device))


def _numbered(device: torch.device) -> torch.device:
    """With its index, also where it is the current one."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.device("cuda", index)


@contextmanager
def told_of_lack() -> Iterator[None]:
    """Says what to do where a GPU lacks the memory that an engine takes at its start."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise OutOfMemoryError(
            "The GPU has less memory free than it had when the engine's share was planned: another "
            "process takes some of it. End that one, or set cache_max_entry_count, "
            "max_prefill_tokens or max_batch_size lower."
        ) from error


def _machine_memory() -> int:
    """What the kernel deems available; all memory where it does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_memory(root: Path) -> list[int]:
    """What the control group's limit leaves, file cache counted as free; empty without a limit."""
    for limit_name, usage_name, reclaimable_name in (_CGROUP_V2, _CGROUP_V1):
        limit_file, usage_file = root / limit_name, root / usage_name
        if not (limit_file.is_file() and usage_file.is_file()):
            continue
        limit = limit_file.read_text().strip()
        if limit == "max":
            return []
        stat = (limit_file.parent / "memory.stat").read_text().split("\n")
        fields = dict(line.split() for line in stat if line)
        used = int(usage_file.read_text()) - int(fields.get(reclaimable_name, 0))
        return [max(int(limit) - used, 0)]
    return []
