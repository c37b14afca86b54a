"""The rows that a model is calibrated on, from whichever source was named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from awqkit.calibration.dataset import CalibrationRows, calibration_rows
from awqkit.calibration.self_sampling import sampled_rows
from awqkit.checkpoint import Checkpoint
from awqkit.checkpoint.tokenizer import load_tokenizer
from awqkit.config import QuantConfig

#: The source that needs no text: the model itself.
SELF = "self"
#: Rows that only the evaluation sees.
EVALUATION_ROWS = 8


def make_rows(
    checkpoint: Checkpoint,
    config: QuantConfig,
    source: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    on_token: Callable[[int, int], None],
) -> CalibrationRows:
    """Rows for `config` from a data set, a file or the model itself.

    device, dtype, on_token: for sampling from the model alone; see `sampled_rows`.
    """
    held_out = EVALUATION_ROWS if config.evaluate else 0
    if source == SELF:
        return sampled_rows(
            checkpoint,
            samples=config.calib_samples,
            seqlen=config.calib_seqlen,
            seed=config.seed,
            held_out=held_out,
            device=device,
            dtype=dtype,
            on_token=on_token,
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


def is_local_file(source: str) -> bool:
    """Whether a source is a file of this machine, which can change between two runs."""
    return source != SELF and Path(source).expanduser().is_file()
