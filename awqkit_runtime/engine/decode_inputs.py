"""What a step of decodes reads and what it chooses, in tensors that stay from step to step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from awqkit_runtime.engine.host_arrays import host_buffer, to_device
from awqkit_runtime.engine.launched_step import LaunchedStep
from awqkit_runtime.engine.runner import known_tokens, rows_followed
from awqkit_runtime.engine.scheduler import Chunk

_UNUSED = -1


class DecodeInputs:
    """One new token a row. Rows beyond those of a step are idle: their position is −1.

    Known tokens and those that the step before chose lie in one tensor, so that each row finds its
    own by one number, whoever wrote it.
    """

    def __init__(self, max_rows: int, table_width: int, device: torch.device) -> None:
        """table_width: pages of the longest sequence."""
        self._numbers = torch.zeros(5 * max_rows, dtype=torch.int64, device=device)
        self._chosen_at = 3 * max_rows
        #: int64 [max_rows, 2]: what a step chose, token and 1 where its logits were finite.
        self.outcome = self._numbers[self._chosen_at :].view(max_rows, 2)
        self._page_table = torch.zeros((max_rows, table_width), dtype=torch.int32, device=device)
        #: The pages of each row as the device has them.
        self._written: list[list[int]] = [[] for _ in range(max_rows)]
        #: The step whose tokens `outcome` holds.
        self._held: LaunchedStep | None = None

    def fill(self, rows: int, chunks: Sequence[Chunk], previous: LaunchedStep | None) -> None:
        """Enqueues what the next step of so many rows reads: chunks of one token each.

        One copy from the host, and another where a sequence got a page or a row another sequence.
        """
        count = len(chunks)
        followed = numpy.array(rows_followed(chunks, previous), dtype=numpy.int64)
        numbers = host_buffer((3, rows), torch.int64, self._numbers.device)
        known, places, positions = numbers.numpy()
        known[:] = [*_known(chunks), *[0] * (rows - count)]
        places[:] = numpy.arange(rows)
        places[:count][followed >= 0] = self._chosen_at + 2 * followed[followed >= 0]
        positions[:count] = [chunk.start for chunk in chunks]
        positions[count:] = _UNUSED
        self._numbers[: 3 * rows].copy_(numbers.view(-1), non_blocking=True)
        if previous is not None and previous is not self._held and (followed >= 0).any():
            self.outcome[: len(previous.requests), 0].copy_(previous.token_ids)
            self._held = previous
        self._write_pages([chunk.request.pages for chunk in chunks])

    def hold(self, step: LaunchedStep) -> None:
        """outcome holds this step's tokens from now on."""
        self._held = step

    def token_ids(self, rows: int) -> Tensor:
        """int64 [rows], computed from what fill() brought."""
        return self._numbers.index_select(0, self._numbers_of(rows)[1])

    def positions(self, rows: int) -> Tensor:
        """int64 [rows], −1 in idle rows."""
        return self._numbers_of(rows)[2]

    def page_table(self, rows: int) -> Tensor:
        """int32 [rows, table_width]; what lies behind a sequence's pages has no meaning."""
        return self._page_table[:rows]

    def _numbers_of(self, rows: int) -> Tensor:
        """Known token ids, where each row's token lies, positions: [3, rows], contiguous."""
        return self._numbers[: 3 * rows].view(3, rows)

    def _write_pages(self, pages: Sequence[list[int]]) -> None:
        """Only of rows that changed: the tables of long sessions are large."""
        pairs = zip(pages, self._written, strict=False)
        changed = [row for row, (found, written) in enumerate(pairs) if found != written]
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


def _known(chunks: Sequence[Chunk]) -> list[int]:
    """Of each chunk its token; 0 for one that the step before samples."""
    if all(chunk.follows for chunk in chunks):
        return [0] * len(chunks)
    return [known_tokens(chunk)[0] for chunk in chunks]
