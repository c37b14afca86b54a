"""The calibration rows of a conversion, made or, where it is gone on with, as they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from awqkit.calibration.dataset import CalibrationRows, token_digest
from awqkit.calibration.rows import is_local_file, make_rows
from awqkit.checkpoint import Checkpoint
from awqkit.checkpoint.staging import reporting_output_errors
from awqkit.journal import Journal
from awqkit.progress import Progress
from awqkit.run import compute_dtype
from awqkit.run_identity import require_same, run_identity
from awqkit.task import Task


def rows_of(
    task: Task,
    checkpoint: Checkpoint,
    folder: Path,
    journal: Journal,
    progress: Progress,
) -> CalibrationRows:
    """The calibration rows, from the journal where it has them; then the identity is proven."""
    identity = run_identity(
        checkpoint, task.config, calib_dataset=task.dataset, devices=task.devices
    )
    if journal.exists:
        require_same(journal.identity, identity, folder=folder)
        rows = journal.calibration()
        # A data set of the hub or the model itself is not asked again: only a file can change.
        if is_local_file(task.dataset):
            now = _made_rows(task, checkpoint, progress)
            require_same(_text_identity(rows), _text_identity(now), folder=folder)
        return rows
    rows = _made_rows(task, checkpoint, progress)
    with reporting_output_errors(task.output):
        journal.begin(identity, rows)
    return rows


def _made_rows(task: Task, checkpoint: Checkpoint, progress: Progress) -> CalibrationRows:
    return make_rows(
        checkpoint,
        task.config,
        task.dataset,
        device=task.devices[0],
        dtype=compute_dtype(task.devices[0]),
        on_token=progress.sampled,
    )


def _text_identity(rows: CalibrationRows) -> dict[str, Any]:
    return {
        "the SHA-256 of the calibration tokens": rows.digest,
        "the SHA-256 of the held-out tokens": token_digest(rows.held_out),
    }
