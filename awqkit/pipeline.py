"""quantize(): a Hugging Face checkpoint in, a 4-bit checkpoint out, a block at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from awqkit.block_quantizer import (
    BlockJob,
    SiteResult,
    nearest_block,
    quantizable_sites,
    quantize_block,
)
from awqkit.calibration.dataset import CalibrationRows, calibration_rows
from awqkit.calibration.self_sampling import sampled_rows
from awqkit.checkpoint import (
    Checkpoint,
    DecoderConfig,
    QuantizedWeight,
    open_checkpoint,
    refuse_occupied,
    write_checkpoint,
)
from awqkit.checkpoint.layout import BITS, GROUP_SIZE
from awqkit.checkpoint.tokenizer import load_tokenizer
from awqkit.config import QuantConfig
from awqkit.decoder import RotaryTables, embed
from awqkit.device import resolve_device
from awqkit.errors import QuantizationError
from awqkit.evaluate import Evaluation, HeldOutRows
from awqkit.progress import Progress, Silent
from awqkit.report import REPORT_NAME, Calibration, Report
from awqkit.version import VERSION

#: Rows that only the evaluation sees.
EVALUATION_ROWS = 8
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def quantize(
    model_path: str | Path,
    output_path: str | Path,
    config: QuantConfig | None = None,
    *,
    calib_dataset: str = "pileval",
    device: str = "auto",
    progress: Progress | None = None,
) -> Report:
    """Quantize a model's linears to 4 bits and write the result to output_path.

    model_path: a folder in Hugging Face form, or a hub id.
    calib_dataset: a known name, a file, a hub id, or "self".
    Raises an AwqkitError that says what is wrong and what to do; then nothing was written.
    """
    run = _Run(config or QuantConfig(), Path(output_path), progress or Silent(), device)
    refuse_occupied(run.output)
    checkpoint = open_checkpoint(model_path)
    unquantized = check_quantizable(checkpoint)
    with run.timed("calibration text"):
        rows = run.calibration(checkpoint, calib_dataset)
    write_checkpoint(
        run.output,
        run.counted(run.quantized_weights(checkpoint, rows)),
        source=checkpoint,
        format=run.config.format,
        documents=lambda: {REPORT_NAME: run.report(checkpoint, rows, unquantized).to_json()},
    )
    return run.report(checkpoint, rows, unquantized)


def check_quantizable(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of the linears that stay unquantized; raises where quantizing makes no sense."""
    if checkpoint.format != "hf":
        raise QuantizationError(
            f"{checkpoint.folder} is quantized already ({checkpoint.format}). "
            "Give the original model, or another --format to repack this one without loss."
        )
    unquantized = unquantized_linears(checkpoint)
    linears = [name for name in checkpoint.names() if name.endswith("_proj.weight")]
    if len(unquantized) == len(linears):
        raise QuantizationError(
            f"{checkpoint.folder}: no linear of this model has inputs that groups of 128 divide, "
            "so nothing would be quantized."
        )
    return unquantized


def unquantized_linears(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of the blocks' linears whose shapes no format can hold, without ".weight"."""
    names: list[str] = []
    for layer in range(checkpoint.config.num_layers):
        prefix = f"model.layers.{layer}."
        shapes = {
            name.removeprefix(prefix): checkpoint.shape(name)
            for name in checkpoint.names()
            if name.startswith(prefix)
        }
        taken = {linear for site in quantizable_sites(shapes) for linear in site.linears}
        linears = [n.removesuffix(".weight") for n in shapes if n.endswith("_proj.weight")]
        names += [prefix + linear for linear in linears if linear not in taken]
    return tuple(names)


def planned_bytes(checkpoint: Checkpoint, config: QuantConfig) -> int:
    """Bytes of all tensors that quantizing this checkpoint would write."""
    itemsize = getattr(torch, config.dtype).itemsize
    dense = {f"{name}.weight" for name in unquantized_linears(checkpoint)}
    total = 0
    for name in checkpoint.names():
        count = prod(checkpoint.shape(name))
        if name.endswith("_proj.weight") and name not in dense:
            groups = count // GROUP_SIZE
            total += (count + groups) * BITS // 8 + groups * torch.float16.itemsize
        else:
            total += count * itemsize
    return total


class _Run:
    """One quantization: its settings, what it has measured, and the time it took."""

    def __init__(self, config: QuantConfig, output: Path, progress: Progress, device: str) -> None:
        self.config = config
        self.output = output
        self.progress = progress
        self.device = resolve_device(device)
        self.compute_dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self.stored_dtype = getattr(torch, config.dtype)
        self.sites: list[SiteResult] = []
        self.evaluation: Evaluation | None = None
        self.seconds: dict[str, float] = {}
        self.bytes_written = 0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def calibration(self, checkpoint: Checkpoint, source: str) -> CalibrationRows:
        config = self.config
        held_out = EVALUATION_ROWS if config.evaluate else 0
        if source == "self":
            return sampled_rows(
                checkpoint,
                samples=config.calib_samples,
                seqlen=config.calib_seqlen,
                seed=config.seed,
                held_out=held_out,
                device=self.device,
                dtype=self.compute_dtype,
                on_token=self.progress.sampled,
            )
        return calibration_rows(
            source,
            tokenizer=load_tokenizer(checkpoint.folder),
            samples=config.calib_samples,
            seqlen=config.calib_seqlen,
            seed=config.seed,
            max_length=checkpoint.config.max_position_embeddings,
            held_out=held_out,
        )

    def quantized_weights(
        self, checkpoint: Checkpoint, rows: CalibrationRows
    ) -> Iterator[tuple[str, Tensor | QuantizedWeight]]:
        """Yield every weight of the result by its canonical name, block after block."""
        decoder, device = checkpoint.config, self.device
        embedding = checkpoint.tensor(EMBEDDING)
        yield EMBEDDING, embedding.to(self.stored_dtype)
        hidden = self._embed(rows.tokens, embedding, decoder)
        held_out = HeldOutRows(rows.held_out, self._embed(rows.held_out, embedding, decoder))
        evaluate = self.config.evaluate and len(rows.held_out) > 0
        rotary = RotaryTables(decoder, self.config.calib_seqlen, device)
        job = BlockJob(
            config=decoder,
            rotary=rotary,
            compute_dtype=self.compute_dtype,
            stored_dtype=self.stored_dtype,
            search_scale=self.config.search_scale,
            second_order=self.config.quality != "fast",
            batch_size=self.config.rows_at_once,
            on_site=self._site_done,
        )
        self.progress.begin(decoder.num_layers)
        for layer in range(decoder.num_layers):
            with self.timed("blocks"):
                weights = _dense_block(checkpoint, layer, device)
                block = quantize_block(job, layer, weights, hidden)
            if evaluate:
                with self.timed("evaluation"):
                    held_out.advance(
                        decoder,
                        layer,
                        rotary.of(layer),
                        original=weights,
                        nearest=nearest_block(weights),
                        quantized=block.running,
                    )
            for name in weights:
                yield f"model.layers.{layer}.{name}", block.stored[name]
            self.progress.block_done(layer)
        norm = checkpoint.tensor(NORM)
        yield NORM, norm.to(self.stored_dtype)
        head = embedding if decoder.tie_word_embeddings else checkpoint.tensor(HEAD)
        if not decoder.tie_word_embeddings:
            yield HEAD, head.to(self.stored_dtype)
        if evaluate:
            with self.timed("evaluation"):
                self.evaluation = held_out.scores(decoder, norm.to(device), head.to(device))

    def counted(
        self, weights: Iterator[tuple[str, Tensor | QuantizedWeight]]
    ) -> Iterator[tuple[str, Tensor | QuantizedWeight]]:
        """The same weights, while their packed bytes are added up."""
        for name, weight in weights:
            self.bytes_written += weight.nbytes
            yield name, weight

    def _embed(self, tokens: Tensor, embedding: Tensor, decoder: DecoderConfig) -> Tensor:
        """int64 [rows, T] → [rows, T, hidden] on the device."""
        return embed(tokens, embedding, decoder, self.compute_dtype).to(self.device)

    def _site_done(self, result: SiteResult) -> None:
        self.sites.append(result)
        self.progress.site_done(result)

    def report(
        self, checkpoint: Checkpoint, rows: CalibrationRows, unquantized: tuple[str, ...]
    ) -> Report:
        return Report(
            version=VERSION,
            model=str(checkpoint.folder),
            output=str(self.output),
            config=self.config,
            calibration=Calibration(
                source=rows.source,
                samples=rows.tokens.shape[0],
                seqlen=rows.tokens.shape[1],
                digest=rows.digest,
            ),
            sites=tuple(self.sites),
            unquantized=unquantized,
            bytes_before=checkpoint.weight_bytes(),
            bytes_after=self.bytes_written,
            evaluation=self.evaluation,
            seconds={stage: round(seconds, 2) for stage, seconds in self.seconds.items()},
        )


def _dense_block(checkpoint: Checkpoint, layer: int, device: torch.device) -> dict[str, Tensor]:
    prefix = f"model.layers.{layer}."
    names = [name for name in checkpoint.names() if name.startswith(prefix)]
    return {name.removeprefix(prefix): checkpoint.tensor(name).to(device) for name in names}
