"""How much memory is free, and how many pages of cache that makes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat, pages_for
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.errors import OutOfMemoryError
from awqkit_runtime.units import human_bytes

_CGROUP_V2 = ("memory.max", "memory.current", "inactive_file")
_CGROUP_V1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on this device.

    On a GPU torch first gives back what it keeps for later.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
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
    reserved_bytes: int = 0,
) -> int:
    """Pages of the cache: what cache_max_entry_count allows of free_bytes.

    Of these bytes reserved_bytes are for the steps, and never become pages. On CPU, where others
    want the memory too, no more than max_batch_size full sessions need. ConfigError for a size
    that is not there, OutOfMemoryError when the pages do not hold a single session.
    """
    page_bytes = page_format.bytes_per_page
    room = max(free_bytes - reserved_bytes, 0)
    # A share is one of all that is free; a size has to fit beside the steps.
    asked_of = free_bytes if isinstance(config.cache_size, float) else room
    budget = config.cache_bytes(asked_of, page_tokens=PAGE_TOKENS, page_bytes=page_bytes)
    budget = min(budget, room)
    pages = budget // page_bytes
    session = pages_for(session_len)
    if pages < session:
        raise OutOfMemoryError(_lacks_a_session(budget, session_len, session * page_bytes, pages))
    if device.type == "cuda":
        return pages
    return min(pages, session * config.batch_size_for(device))


def set_aside(size: int, device: torch.device) -> None:
    """Lets torch take so many bytes of a GPU now, from which it serves what steps ask for later."""
    torch.empty(size, dtype=torch.uint8, device=device)


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


def _lacks_a_session(budget: int, session_len: int, session_bytes: int, pages: int) -> str:
    """What to do where a cache of `budget` bytes, which makes `pages`, holds no session."""
    smaller = (
        f"session_len lower (up to {pages * PAGE_TOKENS} fits)"
        if pages
        else "max_prefill_tokens or max_batch_size lower"
    )
    return (
        f"The cache may take {human_bytes(budget)}, but one session of {session_len} tokens needs "
        f"{human_bytes(session_bytes)}. Set {smaller}, choose quant_policy 8 or 4, or raise "
        "cache_max_entry_count."
    )


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
