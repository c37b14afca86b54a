"""One conversion on its way through the model: what goes from block to block, and what it found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from awqkit.activations import embedded
from awqkit.block_quantizer import (
    BlockJob,
    SiteResult,
    nearest_block,
    quantize_block,
    require_searched,
)
from awqkit.calibration.dataset import CalibrationRows
from awqkit.checkpoint import Checkpoint, QuantizedWeight
from awqkit.checkpoint.canonical import EMBEDDING, FINAL_NORM, LM_HEAD, layer_prefix
from awqkit.config import QuantConfig
from awqkit.decoder import RotaryTables
from awqkit.evaluate import Evaluation
from awqkit.journal import Progressed
from awqkit.prefetch import BlockReader
from awqkit.progress import Progress
from awqkit.ranks.ranks import ALONE, Ranks
from awqkit.stopwatch import Stopwatch
from awqkit.streams import Embed, Streams
from awqkit.structure import from_document
from awqkit.tuning.tune import Tuning
from awqkit.vocabulary import Vocabulary
from awqkit.waiting_blocks import WaitingBlock, from_tensors, to_tensors
from awqkit.whole_model import WholeModel

NamedWeight = tuple[str, Tensor | QuantizedWeight]
Weights = Iterator[NamedWeight]


class Run:
    """blocks: how many are done.  sites, evaluation: what the report tells.

    Of several processes each passes its share of the rows through all blocks, and all yield the
    same weights; the first one alone has the evaluation.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: QuantConfig,
        rows: CalibrationRows,
        *,
        device: torch.device,
        progress: Progress,
        stopwatch: Stopwatch,
        ranks: Ranks = ALONE,
    ) -> None:
        self.blocks = 0
        self.sites: list[SiteResult] = []
        self.evaluation: Evaluation | None = None
        self._checkpoint = checkpoint
        self._device = device
        self._progress = progress
        self._stopwatch = stopwatch
        self._stored_dtype = getattr(torch, config.dtype)
        self._vocabulary = Vocabulary(checkpoint, config, device)
        self._evaluates = config.evaluate and len(rows.held_out) > 0
        decoder = checkpoint.config
        self._rotary = RotaryTables(decoder, config.calib_seqlen, device)
        source = self._vocabulary.embedding().to(device)
        self._streams = Streams(
            rows,
            embed=self._embed(self._vocabulary.running_embedding(source)),
            embed_original=self._embed(source),
            with_original=config.quality != "fast",
            batch_size=config.rows_at_once,
            device=device,
            ranks=ranks,
        )
        self._job = BlockJob(
            config=decoder,
            rotary=self._rotary,
            device=device,
            compute_dtype=compute_dtype(device),
            stored_dtype=self._stored_dtype,
            search_scale=config.search_scale,
            aims_at_original=config.quality != "fast",
            tunes=config.quality == "best",
            batch_size=config.rows_at_once,
            ranks=ranks,
            share=self._streams.share,
            on_site=partial(_site_done, self.sites, progress),
            timed=stopwatch.timed,
        )
        self._blocks = BlockReader(checkpoint, device)
        self._whole = (
            WholeModel(
                checkpoint,
                self._vocabulary,
                rows.tokens,
                self._rotary,
                device=device,
                dtype=compute_dtype(device),
                seed=config.seed,
            )
            if self._job.tunes
            else None
        )
        self._waiting: list[WaitingBlock] = []
        self.tuning: Tuning | None = None

    def first_weights(self) -> Weights:
        """What no block changes, and is large: written beside the first blocks."""
        yield EMBEDDING, self._vocabulary.stored_embedding()
        if not self._vocabulary.is_tied:
            yield LM_HEAD, self._vocabulary.stored_head()

    def next_block(self) -> Weights:
        """Quantize one more block and pass all rows through it."""
        layer = self.blocks
        with self._stopwatch.timed("reading weights"):
            weights = self._blocks.read(layer)
        rows = self._streams
        block = quantize_block(self._job, layer, weights, rows.hidden, rows.original)
        require_searched(block, layer)
        if self._evaluates:
            with self._stopwatch.timed("evaluation"):
                rows.held_out.advance(
                    self._checkpoint.config,
                    layer,
                    self._rotary.of(layer),
                    original=weights,
                    nearest=nearest_block(weights),
                    quantized=block.running,
                )
        self.blocks += 1
        self._progress.block_done(layer)
        stored = {name: block.stored[name] for name in weights}
        if self._whole is not None:
            self._waiting.append(
                WaitingBlock(
                    stored={name: _on_host(weight) for name, weight in stored.items()},
                    offsets={name: offset.cpu() for name, offset in block.offsets.items()},
                )
            )
            return
        for name, weight in stored.items():
            yield layer_prefix(layer) + name, weight

    def last_weights(self) -> Weights:
        """What comes behind the blocks; scores the held-out rows."""
        yield from self._tuned_blocks()
        norm = self._checkpoint.tensor(FINAL_NORM)
        if self._evaluates:
            with self._stopwatch.timed("evaluation"):
                head = self._vocabulary.head().to(self._device)
                if (held_out := self._streams.whole_held_out()) is not None:
                    self.evaluation = held_out.scores(
                        self._checkpoint.config,
                        norm.to(self._device),
                        head,
                        stored_head=self._vocabulary.running_head(
                            head, compute_dtype(self._device)
                        ),
                    )
        yield FINAL_NORM, norm.to(self._stored_dtype)

    def _tuned_blocks(self) -> Weights:
        """The blocks that had to wait for each other."""
        rows = self._streams
        if self._whole is None or rows.original is None:
            return
        rows.hidden = rows.hidden[:0]
        with self._stopwatch.timed("tuning"):
            blocks, self.tuning = self._whole.tuned(
                self._waiting, rows.original, on_step=self._progress.tuned
            )
        if self._evaluates:
            embedding = self._vocabulary.running_embedding(self._vocabulary.embedding())
            rows.begin_held_out_again(self._embed(embedding))
        for layer, block in enumerate(blocks):
            if self._evaluates:
                with self._stopwatch.timed("evaluation"):
                    rows.held_out.advance_quantized(
                        self._checkpoint.config, layer, self._rotary.of(layer), _running(block)
                    )
            for name, weight in block.items():
                yield layer_prefix(layer) + name, weight

    def _embed(self, embedding: Tensor | QuantizedWeight) -> Embed:
        config, device, dtype = self._checkpoint.config, self._device, compute_dtype(self._device)
        return lambda tokens, beside: embedded(
            tokens, embedding, config, dtype, device, beside=beside
        )

    @property
    def stream_bytes(self) -> int:
        """Bytes of the tensors in `progressed`."""
        waiting = to_tensors(self._waiting).values()
        return self._streams.nbytes + sum(tensor.nbytes for tensor in waiting)

    def progressed(self) -> Progressed:
        """What `go_on_from` needs; the first process alone has all of it.

        The tensors may be those that the next block changes in place.
        """
        document: dict[str, Any] = {
            "sites": [asdict(site) for site in self.sites],
            "seconds": self._stopwatch.seconds,
        }
        tensors = {**self._streams.tensors(), **to_tensors(self._waiting)}
        return Progressed(blocks=self.blocks, document=document, tensors=tensors)

    def kept_rows(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors in `progressed`, the rows that `go_on_from` needs here."""
        return self._streams.kept_rows()

    def go_on_from(self, state: Progressed) -> None:
        """Take the place of a run that had come to `state`."""
        self.blocks = state.blocks
        self.sites[:] = [from_document(SiteResult, site) for site in state.document["sites"]]
        self._stopwatch.add(state.document["seconds"])
        self._streams.go_on_from(state.tensors)
        self._waiting = from_tensors(state.tensors)


def _site_done(sites: list[SiteResult], progress: Progress, result: SiteResult) -> None:
    sites.append(result)
    progress.site_done(result)


def _on_host(weight: Tensor | QuantizedWeight) -> Tensor | QuantizedWeight:
    return weight.to(torch.device("cpu"))


def _running(block: Mapping[str, Tensor | QuantizedWeight]) -> dict[str, Tensor]:
    return {
        name: weight.dequantize() if isinstance(weight, QuantizedWeight) else weight
        for name, weight in block.items()
    }


def compute_dtype(device: torch.device) -> torch.dtype:
    """What a device computes blocks in."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16
