"""What a step of decodes reads, in tensors that stay where they are from step to step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from awqkit_runtime.engine.host_arrays import copy_into, to_device
from awqkit_runtime.engine.launched_step import LaunchedStep
from awqkit_runtime.engine.runner import known_tokens, rows_followed
from awqkit_runtime.engine.scheduler import Chunk

_UNUSED = -1


class DecodeInputs:
    """One new token a row. Rows beyond those of a step are idle: their position is −1."""

    def __init__(self, max_rows: int, table_width: int, device: torch.device) -> None:
        """table_width: pages of the longest sequence."""
        self._numbers = torch.zeros(3 * max_rows, dtype=torch.int64, device=device)
        self._sampled = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._page_table = torch.zeros((max_rows, table_width), dtype=torch.int32, device=device)
        #: The pages of each row as the device has them.
        self._written: list[list[int]] = [[] for _ in range(max_rows)]

    def fill(self, rows: int, chunks: Sequence[Chunk], previous: LaunchedStep | None) -> None:
        """Enqueues what the next step of so many rows reads: chunks of one token each.

        One copy from the host, and another where a sequence got a page or a row another sequence.
        """
        followed = rows_followed(chunks, previous)
        numbers = numpy.full((3, rows), _UNUSED, dtype=numpy.int64)
        numbers[0] = 0
        numbers[0, : len(chunks)] = [known_tokens(chunk)[0] for chunk in chunks]
        numbers[1, : len(chunks)] = followed
        numbers[2, : len(chunks)] = [chunk.start for chunk in chunks]
        copy_into(self._numbers_of(rows), numbers)
        if previous is not None and max(followed) >= 0:
            self._sampled[: len(previous.requests)].copy_(previous.token_ids)
        self._write_pages([chunk.request.pages for chunk in chunks])

    def token_ids(self, rows: int) -> Tensor:
        """int64 [rows], computed from what fill() brought."""
        known, sources, _ = self._numbers_of(rows)
        return torch.where(sources < 0, known, self._sampled[sources.clamp(min=0)])

    def positions(self, rows: int) -> Tensor:
        """int64 [rows], −1 in idle rows."""
        return self._numbers_of(rows)[2]

    def page_table(self, rows: int) -> Tensor:
        """int32 [rows, table_width]; what lies behind a sequence's pages has no meaning."""
        return self._page_table[:rows]

    def _numbers_of(self, rows: int) -> Tensor:
        """Token ids, the rows that sampled them or −1, positions: [3, rows], contiguous."""
        return self._numbers[: 3 * rows].view(3, rows)

    def _write_pages(self, pages: Sequence[list[int]]) -> None:
        """Only of rows that changed: the tables of long sessions are large."""
        changed = [row for row, found in enumerate(pages) if found != self._written[row]]
        if not changed:
            return
        for row in changed:
            self._written[row] = []  # Nobody's pages, until they are under way: Ctrl-C may come.
        used = max(len(pages[row]) for row in changed)
        table = numpy.zeros((len(changed), used), dtype=numpy.int32)
        for line, row in enumerate(changed):
            table[line, : len(pages[row])] = pages[row]
        rows, lines = to_device(
            [numpy.array(changed, dtype=numpy.int64), table], self._page_table.device
        )
        self._page_table[:, :used].index_copy_(0, rows, lines)
        for row in changed:
            self._written[row] = list(pages[row])
