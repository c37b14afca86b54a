"""Tuning, for which the whole model is in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from awqkit.activations import embedded
from awqkit.checkpoint import Checkpoint
from awqkit.checkpoint.canonical import FINAL_NORM
from awqkit.decoder import RotaryTables
from awqkit.repeatable import repeatable
from awqkit.row_share import split_rows
from awqkit.tuning.blocks import TunedBlocks
from awqkit.tuning.divergence import Readout
from awqkit.tuning.tune import Tuning, TuningRows, tune
from awqkit.vocabulary import Vocabulary
from awqkit.waiting_blocks import StoredBlock, WaitingBlock


class WholeModel:
    """A model that fits on the device with all its blocks."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        vocabulary: Vocabulary,
        tokens: Tensor,
        rotary: RotaryTables,
        *,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        """tokens: int64 [rows, T], the calibration rows."""
        self._vocabulary = vocabulary
        self._checkpoint, self._rotary, self._seed = checkpoint, rotary, seed
        self._tokens, self._device, self._dtype = tokens, device, dtype

    def tuned(
        self,
        blocks: Sequence[WaitingBlock],
        original: Tensor,
        *,
        on_step: Callable[[int, int], None],
    ) -> tuple[list[StoredBlock], Tuning]:
        """The blocks as they are to be stored, with other codes, and what that gave.

        original: the calibration rows behind the unquantized
        model's last block.
        """
        searched, judged = (
            TuningRows(embedded=rows, original=wanted)
            for rows, wanted in zip(
                split_rows(self._embedded(self._tokens)), split_rows(original), strict=True
            )
        )
        with repeatable():
            return tune(
                [block.stored for block in blocks],
                self._tunable(blocks),
                self._readout(),
                search=searched,
                judge=judged,
                seed=self._seed,
                on_step=on_step,
            )

    def _tunable(self, blocks: Sequence[WaitingBlock]) -> TunedBlocks:
        return TunedBlocks(
            [block.stored for block in blocks],
            [block.offsets for block in blocks],
            self._checkpoint.config,
            self._rotary,
            device=self._device,
            dtype=self._dtype,
        )

    def _embedded(self, tokens: Tensor) -> Tensor:
        embedding = self._vocabulary.running_embedding(self._vocabulary.embedding())
        return embedded(tokens, embedding, self._checkpoint.config, self._dtype, self._device)

    def _readout(self) -> Readout:
        config = self._checkpoint.config
        return Readout(
            config=config,
            norm=self._checkpoint.tensor(FINAL_NORM).to(self._device, self._dtype),
            head=self._vocabulary.head().to(self._device, self._dtype),
        )
