"""What would stop a conversion, found before it begins; nothing is written where it would write."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch

from awqkit.calibration.chat_text import chat_renderer
from awqkit.calibration.dataset import check_row_sizes
from awqkit.calibration.rows import EVALUATION_ROWS, SELF, is_local_file, make_rows
from awqkit.calibration.sources import open_source
from awqkit.checkpoint import Checkpoint
from awqkit.checkpoint.staging import unfinished_path
from awqkit.checkpoint.tokenizer import carry_tokenizer, load_tokenizer
from awqkit.config import QuantConfig
from awqkit.console import human_bytes
from awqkit.errors import OutputError
from awqkit.planning import planned_bytes
from awqkit.run import compute_dtype


def check_text(checkpoint: Checkpoint, config: QuantConfig, dataset: str) -> None:
    """Raise CalibrationError where there are no rows to be had for `config`.

    A local file is read and encoded; what a hub has is not fetched, and may still be out of reach.
    """
    if dataset != SELF:
        open_source(dataset, render_chat=chat_renderer(load_tokenizer(checkpoint.folder)))
    check_row_sizes(
        samples=config.calib_samples,
        seqlen=config.calib_seqlen,
        max_length=checkpoint.config.max_position_embeddings,
    )
    if is_local_file(dataset):
        device = torch.device("cpu")
        dtype = compute_dtype(device)
        make_rows(checkpoint, config, dataset, device=device, dtype=dtype, on_token=_ignore)


def check_tokenizer(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where the tokenizer's files cannot be carried over."""
    with tempfile.TemporaryDirectory() as folder:
        carry_tokenizer(checkpoint.folder, Path(folder), checkpoint.config)


def check_output(checkpoint: Checkpoint, config: QuantConfig, output: Path) -> None:
    """Raise OutputError where there is no place, or no permission, for what would be written."""
    parent = _existing_parent(output.expanduser().absolute())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"{output} could not be written: {parent} is no folder that you may write to. "
            "Name a folder in another place."
        )
    needed = planned_bytes(checkpoint, config) + journal_bytes(checkpoint, config)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OutputError(
            f"The disk is too full for {output}: the checkpoint and, on the way, the journal take "
            f"{human_bytes(needed)}, {human_bytes(free)} are free. Free some space, or name a "
            "folder on another disk."
        )


def has_leftover(output: Path) -> bool:
    """Whether a stopped conversion lies beside the output."""
    return unfinished_path(output.expanduser().resolve()).exists()


def journal_bytes(checkpoint: Checkpoint, config: QuantConfig) -> int:
    """The most that the journal takes beside the checkpoint: two states of all rows."""
    held_out = 3 * EVALUATION_ROWS if config.evaluate else 0
    streams = (1 if config.quality == "fast" else 2) * config.calib_samples + held_out
    row = config.calib_seqlen * checkpoint.config.hidden_size
    return 2 * streams * row * torch.float32.itemsize


def _existing_parent(path: Path) -> Path:
    return next(folder for folder in path.parents if folder.exists())


def _ignore(done: int, total: int) -> None:
    """Sampling does not happen here."""
