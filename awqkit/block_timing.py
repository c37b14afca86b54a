"""How long the first block of a conversion takes, stage by stage."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from awqkit.calibration.dataset import CalibrationRows
from awqkit.checkpoint import Checkpoint, QuantizedWeight
from awqkit.checkpoint.fingerprint import fingerprint
from awqkit.checkpoint.packing import pack
from awqkit.config import QuantConfig
from awqkit.progress import Silent
from awqkit.run import NamedWeight, Run
from awqkit.stopwatch import Stopwatch


@dataclass(frozen=True)
class Timed:
    """Seconds by stage of one block, and of what comes behind the last; and of writing a block."""

    block: dict[str, float]
    end: dict[str, float]
    writing: float


def time_block(
    checkpoint: Checkpoint, config: QuantConfig, rows: CalibrationRows, device: torch.device
) -> Timed:
    clock = Stopwatch(device)
    run = Run(
        checkpoint,
        replace(config, calib_samples=len(rows.tokens)),
        rows,
        device=device,
        progress=Silent(),
        stopwatch=clock,
    )
    stored = list(run.next_block())
    block = dict(clock.seconds)
    clock.seconds.clear()
    for _ in run.last_weights():
        pass
    return Timed(block, dict(clock.seconds), _writing_seconds(stored, config))


def faster(first: Timed, second: Timed) -> Timed:
    """Stage by stage: what else the machine did meanwhile only ever adds to a time."""

    def least(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
        return {stage: min(one[stage], other.get(stage, one[stage])) for stage in one}

    return Timed(
        least(first.block, second.block),
        least(first.end, second.end),
        min(first.writing, second.writing),
    )


def _writing_seconds(stored: list[NamedWeight], config: QuantConfig) -> float:
    start = time.perf_counter()
    for _, weight in stored:
        fingerprint(weight)
        if isinstance(weight, QuantizedWeight):
            pack(weight, config.format)
    return time.perf_counter() - start
