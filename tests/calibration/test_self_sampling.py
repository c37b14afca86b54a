"""Sampling a calibration text from the model itself."""

from __future__ import annotations

from pathlib import Path

import torch

from awqkit.calibration.self_sampling import sampling_seconds
from awqkit.checkpoint import open_checkpoint
from tests.tiny_models import write_tiny_model


def test_timing_does_not_sample_from_memory_that_nobody_wrote(tmp_path: Path) -> None:
    """Deterministic algorithms fill what torch.empty returns with NaN."""
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "model"))
    torch.use_deterministic_algorithms(True)
    try:
        seconds = sampling_seconds(
            checkpoint, samples=4, seqlen=32, device=torch.device("cpu"), dtype=torch.float32
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert seconds > 0
