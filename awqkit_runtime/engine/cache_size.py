"""How many pages of cache the free memory makes, and what helps where these are too few."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat, pages_for
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.step_memory import LIBRARY_BYTES
from awqkit_runtime.errors import OutOfMemoryError
from awqkit_runtime.units import human_bytes


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
    room = _Room(config=config, free_bytes=free_bytes, reserved_bytes=reserved_bytes)
    pages = room.pages(page_format)
    session = pages_for(session_len)
    if pages < session:
        raise OutOfMemoryError(
            f"The cache may take {human_bytes(room.budget(page_format))}, but one session of "
            f"{session_len} tokens needs {human_bytes(session * page_format.bytes_per_page)}. "
            + _what_helps(room, page_format, session)
        )
    if device.type == "cuda":
        return pages
    return min(pages, session * config.batch_size_for(device))


@dataclass(frozen=True, kw_only=True)
class _Room:
    """What the cache has to fit into; see cache_pages."""

    config: EngineConfig
    free_bytes: int
    reserved_bytes: int

    @property
    def beside_steps(self) -> int:
        return max(self.free_bytes - self.reserved_bytes, 0)

    def budget(self, page_format: PageFormat) -> int:
        """Bytes that a cache of such pages may take; ConfigError as in cache_pages."""
        # A share is one of all that is free; a size has to fit beside the steps.
        share = isinstance(self.config.cache_size, float)
        asked = self.config.cache_bytes(
            self.free_bytes if share else self.beside_steps,
            page_tokens=PAGE_TOKENS,
            page_bytes=page_format.bytes_per_page,
        )
        return min(asked, self.beside_steps)

    def pages(self, page_format: PageFormat) -> int:
        return self.budget(page_format) // page_format.bytes_per_page


def _what_helps(room: _Room, page_format: PageFormat, session: int) -> str:
    """What to do where there is no room for a session of so many pages."""
    alone = list(_ways(room, page_format, session))
    if alone:
        return f"{_either(alone)}."
    together = list(_ways(room, page_format, 1))
    if together:
        return f"{_either(together)}; session_len has to be lower too."
    return "End what else takes memory, or choose a smaller model."


def _ways(room: _Room, page_format: PageFormat, wanted: int) -> Iterator[str]:
    """The settings of which each, alone, makes room for so many pages; there is none for them."""
    pages = room.pages(page_format)
    if pages:
        yield f"set session_len lower (up to {pages * PAGE_TOKENS} fits)"
    narrower = page_format.narrower().items()
    policies = [str(policy) for policy, one in narrower if room.pages(one) >= wanted]
    if policies:
        yield f"choose quant_policy {' or '.join(policies)}"
    libraries = min(room.reserved_bytes, LIBRARY_BYTES)  # Which no setting makes smaller.
    if room.beside_steps // page_format.bytes_per_page >= wanted:
        yield "raise cache_max_entry_count"
    elif replace(room, reserved_bytes=libraries).pages(page_format) >= wanted:
        yield "set max_prefill_tokens or max_batch_size lower"


def _either(ways: list[str]) -> str:
    text = ", or ".join([", ".join(ways[:-1]), ways[-1]] if ways[1:] else ways)
    return text[0].upper() + text[1:]
