"""One conversion on its way through the model: what goes from block to block, and what it found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from awqkit.activations import embedded, placed
from awqkit.block_quantizer import (
    BlockJob,
    QuantizedBlock,
    SiteResult,
    nearest_block,
    quantize_block,
)
from awqkit.calibration.dataset import CalibrationRows
from awqkit.checkpoint import Checkpoint, QuantizedWeight
from awqkit.checkpoint.canonical import EMBEDDING, FINAL_NORM, LM_HEAD, layer_prefix
from awqkit.config import QuantConfig
from awqkit.decoder import RotaryTables
from awqkit.errors import QuantizationError
from awqkit.evaluate import Evaluation, HeldOutRows
from awqkit.head import quantized_head
from awqkit.journal import Progressed
from awqkit.prefetch import BlockReader
from awqkit.progress import Progress
from awqkit.stopwatch import Stopwatch
from awqkit.structure import from_document
from awqkit.tuning.tune import Tuning
from awqkit.waiting_blocks import WaitingBlock, from_tensors, to_tensors
from awqkit.whole_model import WholeModel

NamedWeight = tuple[str, Tensor | QuantizedWeight]
Weights = Iterator[NamedWeight]
HIDDEN, ORIGINAL, HELD_OUT = "hidden", "original", "held_out."


class Run:
    """blocks: how many are done.  sites, evaluation: what the report tells."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: QuantConfig,
        rows: CalibrationRows,
        *,
        device: torch.device,
        progress: Progress,
        stopwatch: Stopwatch,
    ) -> None:
        self.blocks = 0
        self.sites: list[SiteResult] = []
        self.evaluation: Evaluation | None = None
        self._checkpoint = checkpoint
        self._device = device
        self._progress = progress
        self._stopwatch = stopwatch
        self._stored_dtype = getattr(torch, config.dtype)
        self._packs_head = config.lm_head == "int4"
        self._evaluates = config.evaluate and len(rows.held_out) > 0
        decoder = checkpoint.config
        self._rotary = RotaryTables(decoder, config.calib_seqlen, device)
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
            on_site=self._site_done,
            timed=stopwatch.timed,
        )
        self._blocks = BlockReader(checkpoint, device)
        embedding = checkpoint.tensor(EMBEDDING)
        self._hidden = self._embed(rows.tokens, embedding)
        self._original = (
            self._embed(rows.tokens, embedding, beside=self._hidden)
            if self._job.aims_at_original
            else None
        )
        self._whole = (
            WholeModel(
                checkpoint,
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
        self._held_out_tokens = rows.held_out
        self._held_out = HeldOutRows(
            rows.held_out, self._embed(rows.held_out, embedding).to(device)
        )

    def first_weights(self) -> Weights:
        """What comes before the blocks."""
        yield EMBEDDING, self._checkpoint.tensor(EMBEDDING).to(self._stored_dtype)

    def next_block(self) -> Weights:
        """Quantize one more block and pass all rows through it."""
        layer = self.blocks
        with self._stopwatch.timed("reading weights"):
            weights = self._blocks.read(layer)
        block = quantize_block(self._job, layer, weights, self._hidden, self._original)
        _require_searched(block, layer)
        if self._evaluates:
            with self._stopwatch.timed("evaluation"):
                self._held_out.advance(
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
        is_tied = self._checkpoint.config.tie_word_embeddings
        head = self._checkpoint.tensor(EMBEDDING if is_tied else LM_HEAD)
        head = head.to(self._device)
        packed = quantized_head(head) if self._packs_head else None
        if self._evaluates:
            with self._stopwatch.timed("evaluation"):
                self.evaluation = self._held_out.scores(
                    self._checkpoint.config,
                    norm.to(self._device),
                    head,
                    stored_head=head if packed is None else packed.dequantize(head.dtype),
                )
        yield FINAL_NORM, norm.to(self._stored_dtype)
        if not is_tied:
            yield LM_HEAD, head.to(self._stored_dtype) if packed is None else packed

    def _tuned_blocks(self) -> Weights:
        """The blocks that had to wait for each other."""
        if self._whole is None or self._original is None:
            return
        self._hidden = self._hidden[:0]
        with self._stopwatch.timed("tuning"):
            blocks, self.tuning = self._whole.tuned(
                self._waiting, self._original, on_step=self._progress.tuned
            )
        if self._evaluates:
            embedding = self._checkpoint.tensor(EMBEDDING)
            self._held_out.begin_again(self._embed(self._held_out_tokens, embedding))
        for layer, block in enumerate(blocks):
            if self._evaluates:
                with self._stopwatch.timed("evaluation"):
                    self._held_out.advance_quantized(
                        self._checkpoint.config, layer, self._rotary.of(layer), _running(block)
                    )
            for name, weight in block.items():
                yield layer_prefix(layer) + name, weight

    @property
    def stream_bytes(self) -> int:
        """Bytes of the tensors in `progressed`."""
        return sum(tensor.nbytes for tensor in self._streams().values())

    def progressed(self) -> Progressed:
        """What `go_on_from` needs; the tensors are those that the next block changes in place."""
        document: dict[str, Any] = {
            "sites": [asdict(site) for site in self.sites],
            "seconds": self._stopwatch.seconds,
        }
        return Progressed(blocks=self.blocks, document=document, tensors=self._streams())

    def go_on_from(self, state: Progressed) -> None:
        """Take the place of a run that had come to `state`."""
        self.blocks = state.blocks
        self.sites = [from_document(SiteResult, site) for site in state.document["sites"]]
        self._stopwatch.add(state.document["seconds"])
        self._hidden = placed(state.tensors[HIDDEN], self._device)
        if self._original is not None:
            self._original = placed(state.tensors[ORIGINAL], self._device, beside=self._hidden)
        self._waiting = from_tensors(state.tensors)
        self._held_out.go_on_from(
            {
                name.removeprefix(HELD_OUT): tensor
                for name, tensor in state.tensors.items()
                if name.startswith(HELD_OUT)
            }
        )

    def _streams(self) -> dict[str, Tensor]:
        held_out = {HELD_OUT + name: rows for name, rows in self._held_out.streams().items()}
        original = {} if self._original is None else {ORIGINAL: self._original}
        return {HIDDEN: self._hidden, **original, **held_out, **to_tensors(self._waiting)}

    def _embed(self, tokens: Tensor, embedding: Tensor, *, beside: Tensor | None = None) -> Tensor:
        config, dtype = self._checkpoint.config, compute_dtype(self._device)
        return embedded(tokens, embedding, config, dtype, self._device, beside=beside)

    def _site_done(self, result: SiteResult) -> None:
        self.sites.append(result)
        self._progress.site_done(result)


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


def _require_searched(block: QuantizedBlock, layer: int) -> None:
    """Refuse integers that mean other weights than those that were searched and passed through."""
    for name, weight in block.stored.items():
        if isinstance(weight, QuantizedWeight):
            searched = block.running[name]
            if not torch.equal(weight.dequantize(searched.dtype), searched):
                raise QuantizationError(
                    f"{layer_prefix(layer)}{name}: the integers to be stored stand for other "
                    "weights than the search found. This is a fault of awqkit: please report it "
                    "with the model's name."
                )
