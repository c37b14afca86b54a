"""Keys of tokens that attend each by itself: read at once, and each token's in a piece of its own.

A piece holds what would have been read for its token alone, head by head, and begins at a multiple
of _PIECE_STEP rows: as well aligned as memory of its own, so that kernels compute in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy
from numpy.typing import NDArray
from torch import Tensor

from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat, pages_for

#: Of even head sizes, in 16 bits at least: 64 bytes, which is what torch gives on a CPU and more
#: than kernels ask for.
_PIECE_STEP = 16
_OFFSETS = numpy.arange(PAGE_TOKENS, dtype=numpy.int32)

IntArray = NDArray[numpy.int32]


@dataclass(frozen=True, kw_only=True)
class KeyRun:
    """Keys first … stop − 1 of a sequence."""

    pages: tuple[int, ...]
    first: int
    stop: int

    @property
    def keys(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyPieces:
    """Where the pieces are read from, and how what was read is split into them."""

    #: int32 [1, R], for each key of each head its row in the store of the vectors; [2, R] where
    #: pages are quantized, then also its row among the parameters.
    rows: IntArray
    num_kv_heads: int
    #: Rows of a piece, and of the gap behind it, in turn; R together.
    sizes: tuple[int, ...]

    def split(self, vectors: Tensor) -> list[Tensor]:
        """[R, head_dim] → of each run [1, kv_heads, keys, head_dim], contiguous."""
        pieces = vectors.split_with_sizes(self.sizes)[::2]
        return [piece.view(1, self.num_kv_heads, -1, vectors.shape[-1]) for piece in pieces]


def plan_pieces(runs: Sequence[KeyRun], format: PageFormat) -> KeyPieces:
    """One piece for each run."""
    heads = format.num_kv_heads
    # Runs of PAGE_TOKENS rows in a page: of vectors; of parameters, values' among them.
    runs_a_page = (heads, 2 * heads) if format.quantized else (heads,)
    pieces = [heads * run.keys for run in runs]
    sizes = [size for piece in pieces for size in (piece, -piece % _PIECE_STEP)]
    # What is read for a gap is of no account: row 0.
    rows = numpy.zeros((len(runs_a_page), sum(sizes)), dtype=numpy.int32)
    start = 0
    for run, piece, gap in zip(runs, pieces, sizes[1::2], strict=True):
        for kind, count in zip(rows, runs_a_page, strict=True):
            target = kind[start : start + piece].reshape(heads, -1)
            numpy.add(_head_starts(heads), _token_rows(run, count), out=target)
        start += piece + gap
    return KeyPieces(rows=rows, num_kv_heads=heads, sizes=tuple(sizes))


def _token_rows(run: KeyRun, runs_a_page: int) -> IntArray:
    """Rows of the run's tokens in the first head, [keys]."""
    first_page = run.first // PAGE_TOKENS
    pages = numpy.array(run.pages[first_page : pages_for(run.stop)], dtype=numpy.int32)
    rows = (pages * (runs_a_page * PAGE_TOKENS))[:, None] + _OFFSETS
    before = first_page * PAGE_TOKENS
    return rows.reshape(-1)[run.first - before : run.stop - before]


@cache
def _head_starts(heads: int) -> Any:
    """int32 [heads, 1]: the first row of each head of a page."""
    return numpy.arange(0, heads * PAGE_TOKENS, PAGE_TOKENS, dtype=numpy.int32)[:, None]
