"""Columns in blocks of several groups: what other blocks do to one is a single, large product."""

from __future__ import annotations

from collections.abc import Iterator

from awqkit.checkpoint.layout import GROUP_SIZE

#: Groups of a block, all of whose columns take part in one product with everything outside.
BLOCK_GROUPS = 8


def column_blocks(width: int) -> Iterator[slice]:
    """Slices of BLOCK_GROUPS groups, the last one of fewer."""
    step = BLOCK_GROUPS * GROUP_SIZE
    for start in range(0, width, step):
        yield slice(start, min(start + step, width))


def groups_of(block: slice) -> Iterator[slice]:
    """The columns of each group of a block."""
    for start in range(block.start, block.stop, GROUP_SIZE):
        yield slice(start, start + GROUP_SIZE)
