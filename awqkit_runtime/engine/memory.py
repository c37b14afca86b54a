"""How much memory is free, and how many pages of cache that makes."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat, pages_for
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.errors import OutOfMemoryError

_CGROUP_V2 = ("memory.max", "memory.current", "inactive_file")
_CGROUP_V1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on this device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    bounds = [_machine_memory(), *_container_memory(Path("/sys/fs/cgroup"))]
    return min(bounds)


def part_of_memory(free: int, device: torch.device, ranks: int) -> int:
    """Bytes of `free` that one rank may use: of a CPU's memory all of them have their part."""
    return free // ranks if device.type == "cpu" else free


def cache_pages(
    config: EngineConfig,
    page_format: PageFormat,
    *,
    device: torch.device,
    session_len: int,
    free_bytes: int,
) -> int:
    """Pages of the cache: what cache_max_entry_count allows of free_bytes.

    On CPU, where others want the memory too, no more than max_batch_size full sessions need.
    OutOfMemoryError when that does not hold a single session.
    """
    page_bytes = page_format.bytes_per_page
    budget = config.cache_bytes(free_bytes, page_tokens=PAGE_TOKENS, page_bytes=page_bytes)
    pages = budget // page_bytes
    session = pages_for(session_len)
    if pages < session:
        fitting = pages * PAGE_TOKENS
        raise OutOfMemoryError(
            f"The cache may take {_mib(budget)}, but one session of {session_len} tokens needs "
            f"{_mib(session * page_bytes)}. Set session_len lower (up to "
            f"{fitting} fits), choose quant_policy 8 or 4, or raise cache_max_entry_count."
        )
    if device.type == "cuda":
        return pages
    return min(pages, session * config.batch_size_for(device))


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


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
