"""What a conversion will take: one block of the model is quantized for it, and counted up."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from awqkit import activations
from awqkit.block_quantizer import GRADIENT_TOKENS
from awqkit.block_timing import faster, time_block
from awqkit.calibration.dataset import CalibrationRows
from awqkit.calibration.rows import EVALUATION_ROWS, SELF, is_local_file, make_rows
from awqkit.calibration.self_sampling import sampling_seconds
from awqkit.checkpoint import Checkpoint, DecoderConfig
from awqkit.checkpoint.canonical import layer_shapes
from awqkit.config import QuantConfig
from awqkit.device import begin_peak, join_freed_memory, peak_bytes
from awqkit.row_share import share_of
from awqkit.run import compute_dtype
from awqkit.stopwatch import Stopwatch
from awqkit.warm_up import warm_up

#: Seconds that the rows of the timed block may take.
ROW_SECONDS = 3.0
#: Where timing took less than this, it is done once more, and the faster of both counts.
SECONDS_TO_TIME_AGAIN = 6.0
#: Rows that pass through the block to time the evaluation.
HELD_OUT_ROWS = 2
#: What tuning keeps of every weight: its code, the value behind it, and two moments.
TUNED_BYTES = 9
#: Stages whose time grows with the rows, and not just with the weights.
BY_ROWS = ("moments", "passing rows on")
#: Times that rows pass through the block, by quality, forward or backward.
PASSES = {"fast": 2, "balanced": 9, "best": 24}
#: glibc keeps pieces below this size for itself when they are freed, and on a CPU takes some more
#: of a batch's widest activations than live at once, until the sizes have settled.
LARGEST_KEPT_PIECE = 32 << 20
PIECES_KEPT = 4


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """seconds: by stage, as a report has them.  peak_bytes: by kind of memory, likewise.

    text_is_counted: whether the seconds hold the calibration text, which may have to be fetched.
    """

    seconds: dict[str, float]
    peak_bytes: dict[str, int]
    text_is_counted: bool


def forecast(
    checkpoint: Checkpoint,
    config: QuantConfig,
    *,
    calib_dataset: str,
    device: torch.device,
    processes: int = 1,
) -> Forecast:
    """Quantize the first block on as many rows as a few seconds allow, and write nothing.

    processes: that are to share the rows. One alone is timed; what it would take to send
    activations from one to the other is not counted.
    """
    decoder = checkpoint.config
    join_freed_memory(device)
    begin_peak(device)
    start = time.perf_counter()
    warm_up(config, device)
    once = time.perf_counter() - start
    text = _text_seconds(checkpoint, config, calib_dataset, device)
    rows = _sample(decoder, config, device)
    start = time.perf_counter()
    timed = time_block(checkpoint, config, rows, device)
    if time.perf_counter() - start < SECONDS_TO_TIME_AGAIN:
        timed = faster(timed, time_block(checkpoint, config, rows, device))
    more = _Multiples(decoder, config, rows, processes)
    seconds = {stage: took * more.of_block(stage) for stage, took in timed.block.items()}
    for stage, took in timed.end.items():
        seconds[stage] = seconds.get(stage, 0.0) + took * more.of_end(stage)
    writing = timed.writing * decoder.num_layers
    meanwhile = (text or 0.0) if device.type == "cuda" and calib_dataset != SELF else 0.0
    # A GPU's blocks are written beside the work on the next one.
    seconds |= {
        "writing": writing if device.type == "cpu" else 0.0,
        "reading back": writing,
        "starting": max(0.0, once - meanwhile),
    }
    return Forecast(
        seconds={"calibration text": text or 0.0, **seconds},
        peak_bytes=_with_all_rows(
            peak_bytes(device), decoder, config, len(rows.tokens), device, processes
        ),
        text_is_counted=text is not None,
    )


class _Multiples:
    """How many times what was measured a conversion takes, by stage."""

    def __init__(
        self, decoder: DecoderConfig, config: QuantConfig, rows: CalibrationRows, processes: int
    ) -> None:
        self._decoder = decoder
        # A process passes on whole batches, and the first one has the most of them.
        share = share_of(config.calib_samples, config.rows_at_once, rank=0, count=processes)
        self._rows = len(share.rows) / len(rows.tokens)
        held_out = -(-EVALUATION_ROWS // processes)
        self._evaluation = held_out / max(1, len(rows.held_out))
        self._scores = EVALUATION_ROWS / max(1, len(rows.held_out))
        most = max(1, GRADIENT_TOKENS // config.calib_seqlen)
        self._gradients = min(most, config.calib_samples) / min(most, len(rows.tokens))

    def of_block(self, stage: str) -> float:
        """Of a stage of the first block."""
        rows = {
            "evaluation": self._evaluation,
            "gradients": self._gradients,
            **dict.fromkeys(BY_ROWS, self._rows),
        }
        return self._decoder.num_layers * rows.get(stage, 1.0)

    def of_end(self, stage: str) -> float:
        """Of what comes behind the one block."""
        if stage != "tuning":
            return self._scores
        block, head = linear_weights(self._decoder), self._decoder.vocab_size
        head *= self._decoder.hidden_size
        return self._rows * (self._decoder.num_layers * block + head) / (block + head)


def linear_weights(decoder: DecoderConfig) -> int:
    """Weights of a block's linears."""
    shapes = layer_shapes(decoder, 0).values()
    return sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)


def _text_seconds(
    checkpoint: Checkpoint, config: QuantConfig, source: str, device: torch.device
) -> float | None:
    """None where the text lies elsewhere."""
    dtype = compute_dtype(device)
    if source == SELF:
        held_out = EVALUATION_ROWS if config.evaluate else 0
        total = config.calib_samples + held_out
        return sampling_seconds(
            checkpoint, samples=total, seqlen=config.calib_seqlen, device=device, dtype=dtype
        )
    if not is_local_file(source):
        return None
    start = time.perf_counter()
    make_rows(
        checkpoint, config, source, device=device, dtype=dtype, on_token=lambda done, total: None
    )
    return time.perf_counter() - start


def _sample(decoder: DecoderConfig, config: QuantConfig, device: torch.device) -> CalibrationRows:
    """Random tokens: as many rows as ROW_SECONDS allow, or all."""
    shapes = layer_shapes(decoder, 0).values()
    moments = sum(shape[1] ** 2 for shape in shapes if len(shape) == 2) // 2
    is_best = config.quality == "best"
    work = 2 * (linear_weights(decoder) + moments) * config.calib_seqlen * PASSES[config.quality]
    affordable = int(ROW_SECONDS * _operations_a_second(device) / work)
    # A full batch among the rows that are searched, for the memory that it takes.
    least = config.rows_at_once if is_best else config.rows_at_once * 8 // 7 + 1
    count = min(config.calib_samples, max(least, affordable))
    held_out = min(HELD_OUT_ROWS, count) if config.evaluate else 0
    tokens = torch.randint(decoder.vocab_size, (count + held_out, config.calib_seqlen))
    return CalibrationRows(
        tokens=tokens[:count], held_out=tokens[count:], digest="", source="random tokens"
    )


def _operations_a_second(device: torch.device, size: int = 1024) -> float:
    """Of products in the dtype that blocks are computed in, a quarter of their peak."""
    factor = torch.randn(size, size, device=device, dtype=compute_dtype(device))
    clock = Stopwatch(device)
    for stage in ("first", "second"):
        with clock.timed(stage):
            for _ in range(4):
                factor @ factor
    return 4 * 2 * size**3 / clock.seconds["second"] / 4


def _with_all_rows(
    measured: Mapping[str, int],
    decoder: DecoderConfig,
    config: QuantConfig,
    sampled: int,
    device: torch.device,
    processes: int,
) -> dict[str, int]:
    """The peaks of the sample with the rows of the whole conversion instead."""
    row = config.calib_seqlen * decoder.hidden_size * compute_dtype(device).itemsize
    streams = 1 if config.quality == "fast" else 2
    share = share_of(config.calib_samples, config.rows_at_once, rank=0, count=processes)
    on_device, on_host = activations.split_streams(len(share.rows) * row, streams, device)
    kind = "GPU memory" if device.type == "cuda" else "memory"
    peaks = dict(measured)
    peaks[kind] += on_device - streams * sampled * row
    if config.quality == "best":
        peaks[kind] += TUNED_BYTES * linear_weights(decoder) * (decoder.num_layers - 1)
    kept = _kept_pieces(decoder, config) if device.type == "cpu" else 0
    peaks["memory"] = (peaks["memory"] + on_host + kept * (len(share.rows) > sampled)) * processes
    return peaks


def _kept_pieces(decoder: DecoderConfig, config: QuantConfig) -> int:
    tokens = min(config.rows_at_once, config.calib_samples) * config.calib_seqlen
    piece = tokens * decoder.intermediate_size * torch.float32.itemsize
    return PIECES_KEPT * piece if piece < LARGEST_KEPT_PIECE else 0
