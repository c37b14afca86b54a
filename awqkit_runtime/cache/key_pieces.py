"""Keys and values of tokens that attend each by itself: read at once, one piece for each token.

A piece holds what would have been read for its token alone, head by head, and begins at a multiple
of _PIECE_STEP rows: as well aligned as memory of its own, so that kernels compute in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from awqkit_runtime.cache.int_arrays import send
from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat, pages_for
from awqkit_runtime.cache.page_rows import TokenRows
from awqkit_runtime.cache.pool import PagePool

#: Keys that are read at once, unless a single token has more.
JOINT_KEYS = 4096
#: Of even head sizes, in 16 bits at least: 64 bytes, which is what torch gives on a CPU and more
#: than kernels ask for.
_PIECE_STEP = 16
_OFFSETS = numpy.arange(PAGE_TOKENS, dtype=numpy.int64)

_IntArray = NDArray[numpy.int64]


@dataclass(frozen=True, kw_only=True)
class KeyRun:
    """Keys first … stop − 1 of a sequence."""

    pages: tuple[int, ...]
    first: int
    stop: int

    @property
    def keys(self) -> int:
        return self.stop - self.first


class KeyPieces:
    """A piece for each of some runs, in their order; where they lie is the same in every layer."""

    def __init__(self, pool: PagePool, runs: Sequence[KeyRun]) -> None:
        """runs: of no more than JOINT_KEYS keys together, or one that has more."""
        self._pool = pool
        pieces = [pool.format.num_kv_heads * run.keys for run in runs]
        #: Rows of each piece and of the gap behind it, in turn.
        self._sizes = [size for piece in pieces for size in (piece, -piece % _PIECE_STEP)]
        #: Rows, or slots of a run that has more: its rows would be many times as many.
        self._places: TokenRows | Tensor
        if runs[0].keys > JOINT_KEYS:
            self._sizes = pieces
            self._places = send(torch.from_numpy(_token_rows(runs[0], 1)), pool.device)
        else:
            rows = torch.from_numpy(_key_rows(runs, self._sizes, pool.format))
            self._places = pool.piece_rows(send(rows, pool.device))

    def read(self, layer: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """Keys, in the pool's frame, and values of each run: [1, kv_heads, keys, head_dim] each."""
        places = self._places
        rows = places if isinstance(places, TokenRows) else self._pool.rows(places)
        keys, values = self._pool.read_rows(layer, rows).to(dtype).unbind()
        return self._split(keys), self._split(values)

    def _split(self, vectors: Tensor) -> list[Tensor]:
        shape = (1, self._pool.format.num_kv_heads, -1, vectors.shape[-1])
        return [piece.view(shape) for piece in vectors.split_with_sizes(self._sizes)[::2]]


def joint_reads(runs: Sequence[KeyRun]) -> list[slice]:
    """Neighbours of no more than JOINT_KEYS keys together; by itself a run that has more."""
    found, start, keys = [], 0, 0
    for place, run in enumerate(runs):
        if place > start and keys + run.keys > JOINT_KEYS:
            found.append(slice(start, place))
            start, keys = place, 0
        keys += run.keys
    return [*found, slice(start, len(runs))]


def _key_rows(runs: Sequence[KeyRun], sizes: Sequence[int], format: PageFormat) -> _IntArray:
    """As PagePool.piece_rows takes them. sizes: of pieces and gaps, for which row 0 is read."""
    heads = format.num_kv_heads
    # Runs of PAGE_TOKENS rows in a page: of vectors; of parameters, values' among them.
    runs_a_page = (heads, 2 * heads) if format.quantized else (heads,)
    found = numpy.zeros((len(runs_a_page), sum(sizes)), dtype=numpy.int64)
    starts = [0, *accumulate(sizes)][::2]
    for run, start in zip(runs, starts, strict=False):
        piece = slice(start, start + heads * run.keys)
        for rows, count in zip(found, runs_a_page, strict=True):
            target = rows[piece].reshape(heads, -1)
            numpy.add(_head_starts(heads), _token_rows(run, count), out=target)
    return found


def _token_rows(run: KeyRun, runs_a_page: int) -> _IntArray:
    """Rows of the run's tokens in the first head, [keys]; with one run a page, their slots."""
    first_page = run.first // PAGE_TOKENS
    pages = numpy.array(run.pages[first_page : pages_for(run.stop)], dtype=numpy.int64)
    rows = (pages * (runs_a_page * PAGE_TOKENS))[:, None] + _OFFSETS
    before = first_page * PAGE_TOKENS
    return rows.reshape(-1)[run.first - before : run.stop - before]


@cache
def _head_starts(heads: int) -> Any:
    """int64 [heads, 1]: the first row of each head of a page."""
    return numpy.arange(0, heads * PAGE_TOKENS, PAGE_TOKENS, dtype=numpy.int64)[:, None]
