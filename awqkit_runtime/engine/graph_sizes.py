"""The batch sizes that decode steps run as."""

from __future__ import annotations

from itertools import chain, takewhile

#: Kernels compute rows in eights, so between multiples of 8 smaller steps save nothing; of large
#: batches a few idle rows more are little.
_SMALL_SIZES = (1, 2, 4)
_SIZE_STEPS = ((8, 129, 8), (144, 513, 16), (544, 2**20, 32))


def graph_sizes(max_rows: int) -> tuple[int, ...]:
    """Batch sizes that have a graph; the last one is max_rows.

    >>> graph_sizes(20)
    (1, 2, 4, 8, 16, 20)
    """
    sizes = chain(_SMALL_SIZES, *(range(*steps) for steps in _SIZE_STEPS))
    return (*takewhile(lambda size: size < max_rows, sizes), max_rows)
