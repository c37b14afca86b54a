"""Large matrices in parts of their rows, so that a search's intermediate results stay small."""

from __future__ import annotations

from collections.abc import Iterator

#: Elements of a matrix that are worked on at once: half a gigabyte in float32, of which a search
#: holds about ten. All linears of a 7B model stay whole.
MOST_ELEMENTS = 1 << 27


def row_parts(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows, as even as can be, none of more than MOST_ELEMENTS, or of one row."""
    most = max(1, MOST_ELEMENTS // columns)
    step = -(-rows // -(-rows // most))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
