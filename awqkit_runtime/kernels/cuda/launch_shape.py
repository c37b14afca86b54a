"""The shape of a launch, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LaunchShape:
    """overlap: the kernel itself waits for its predecessor (griddepcontrol.wait)."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int = 0
    overlap: bool = False
