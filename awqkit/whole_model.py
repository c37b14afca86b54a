"""What only the whole model in memory can tell: what it minds before rounding, and tuning after."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from awqkit.activations import embedded
from awqkit.block_quantizer import quantizable_sites
from awqkit.checkpoint import Checkpoint
from awqkit.checkpoint.canonical import EMBEDDING, FINAL_NORM, LM_HEAD
from awqkit.decoder import RotaryTables
from awqkit.row_share import split_rows
from awqkit.tuning.blocks import TunedBlocks
from awqkit.tuning.divergence import Readout
from awqkit.tuning.output_moments import OutputMoments, output_moments
from awqkit.tuning.tune import Tuning, TuningRows, tune
from awqkit.waiting_blocks import StoredBlock, WaitingBlock

#: Of the calibration tokens, those whose gradients are gathered.
GRADIENT_TOKENS = 65536


class WholeModel:
    """A model that fits on the device with all its blocks."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: Tensor,
        rotary: RotaryTables,
        *,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        """tokens: int64 [rows, T], the calibration rows."""
        self._checkpoint, self._rotary, self._seed = checkpoint, rotary, seed
        self._tokens, self._device, self._dtype = tokens, device, dtype

    def output_moments(self) -> list[OutputMoments]:
        """By layer, of every linear that is quantized, on the rows that the search sees."""
        rows, _ = split_rows(self._tokens)
        count = max(1, GRADIENT_TOKENS // rows.shape[1])
        config = self._checkpoint.config
        blocks = [self._dense(layer) for layer in range(config.num_layers)]
        with _repeatable():
            return output_moments(
                blocks,
                config,
                self._rotary,
                self._readout(),
                self._embedded(rows[:count]),
                linears=_quantized_linears,
                seed=self._seed,
            )

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
        with _repeatable():
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

    def _dense(self, layer: int) -> dict[str, Tensor]:
        return {
            name: weight.to(self._device, self._dtype)
            for name, weight in self._checkpoint.block(layer).items()
            if isinstance(weight, Tensor)
        }

    def _embedded(self, tokens: Tensor) -> Tensor:
        embedding, config = self._checkpoint.tensor(EMBEDDING), self._checkpoint.config
        return embedded(tokens, embedding, config, self._dtype, self._device)

    def _readout(self) -> Readout:
        config = self._checkpoint.config
        head = self._checkpoint.tensor(EMBEDDING if config.tie_word_embeddings else LM_HEAD)
        return Readout(
            config=config,
            norm=self._checkpoint.tensor(FINAL_NORM).to(self._device, self._dtype),
            head=head.to(self._device, self._dtype),
        )


def _quantized_linears(block: Mapping[str, Tensor]) -> list[str]:
    shapes = {name: tuple(tensor.shape) for name, tensor in block.items()}
    return [linear for site in quantizable_sites(shapes) for linear in site.linears]


@contextmanager
def _repeatable() -> Iterator[None]:
    """Gradients that add up in the same order every time, so that a resumed run ends alike."""
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warns)
