"""What a step of decodes reads and what it chooses, in tensors that stay from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from awqkit_runtime.engine.host_arrays import host_buffer, to_device
from awqkit_runtime.engine.launched_step import LaunchedStep
from awqkit_runtime.engine.runner import known_tokens, rows_followed
from awqkit_runtime.engine.scheduler import Chunk

_UNUSED = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodeNumbers:
    """What the host brings to one step of decodes."""

    #: int64 [3, rows]: known token ids, where each row's token lies, positions.
    numbers: NDArray[numpy.int64]
    #: By row, where they changed: the pages of its sequence.
    pages: dict[int, list[int]]

    @property
    def rows(self) -> int:
        return self.numbers.shape[1]


@dataclass(frozen=True, kw_only=True)
class KnownToken:
    """A new token that the host knows, and the pages of its sequence."""

    token_id: int
    position: int
    pages: list[int]


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

    def plan(
        self, rows: int, chunks: Sequence[Chunk], previous: LaunchedStep | None
    ) -> DecodeNumbers:
        """What the next step of so many rows must be brought: chunks of one token each.

        Tokens of the step before that lie elsewhere are copied to where its rows find them.
        """
        count = len(chunks)
        followed = numpy.array(rows_followed(chunks, previous), dtype=numpy.int64)
        numbers = _idle_rows(rows)
        known, places, positions = numbers
        known[:count] = _known(chunks)
        places[:count][followed >= 0] = self._chosen_at + 2 * followed[followed >= 0]
        positions[:count] = [chunk.start for chunk in chunks]
        if previous is not None and previous is not self._held and (followed >= 0).any():
            self.put_tokens(previous.token_ids)
            self._held = previous
        pages = {row: chunk.request.pages for row, chunk in enumerate(chunks)}
        return DecodeNumbers(numbers=numbers, pages=self._changed(pages))

    def plan_known(self, rows: int, tokens: Mapping[int, KnownToken]) -> DecodeNumbers:
        """What a step must be brought in which some of so many rows have a token, by row."""
        numbers = _idle_rows(rows)
        known, _, positions = numbers
        for row, token in tokens.items():
            known[row], positions[row] = token.token_id, token.position
        pages = {row: token.pages for row, token in tokens.items()}
        return DecodeNumbers(numbers=numbers, pages=self._changed(pages))

    def bring(self, step: DecodeNumbers) -> None:
        """Enqueues one copy from the host, and another where a row's pages changed."""
        staged = host_buffer(step.numbers.shape, torch.int64, self._numbers.device)
        staged.numpy()[:] = step.numbers
        self._numbers[: staged.numel()].copy_(staged.view(-1), non_blocking=True)
        self._write_pages(step.pages)

    def put_tokens(self, token_ids: Tensor) -> None:
        """int64 [n], of a step: where the rows of the next one find them."""
        self.outcome[: len(token_ids), 0].copy_(token_ids)

    def hold(self, step: LaunchedStep) -> None:
        """outcome holds this step's tokens from now on."""
        self._held = step

    def token_ids(self, rows: int) -> Tensor:
        """int64 [rows], computed from what bring() brought."""
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

    def _changed(self, pages: Mapping[int, list[int]]) -> dict[int, list[int]]:
        """Of rows whose pages are other ones than the device has: the tables of long sessions are
        large."""
        return {row: list(new) for row, new in pages.items() if new != self._written[row]}

    def _write_pages(self, pages: Mapping[int, list[int]]) -> None:
        if not pages:
            return
        for row in pages:
            self._written[row] = []  # Nobody's pages, until they are under way: Ctrl-C may come.
        used = max(map(len, pages.values()))
        table = numpy.zeros((len(pages), used), dtype=numpy.int32)
        for line, found in enumerate(pages.values()):
            table[line, : len(found)] = found
        rows, lines = to_device(
            [numpy.array([*pages], dtype=numpy.int64), table], self._page_table.device
        )
        self._page_table[:, :used].index_copy_(0, rows, lines)
        for row, found in pages.items():
            self._written[row] = found


def _idle_rows(rows: int) -> NDArray[numpy.int64]:
    """DecodeNumbers.numbers without a token."""
    numbers = numpy.zeros((3, rows), dtype=numpy.int64)
    numbers[1] = numpy.arange(rows)
    numbers[2] = _UNUSED
    return numbers


def _known(chunks: Sequence[Chunk]) -> list[int]:
    """Of each chunk its token; 0 for one that the step before samples."""
    if all(chunk.follows for chunk in chunks):
        return [0] * len(chunks)
    return [known_tokens(chunk)[0] for chunk in chunks]
