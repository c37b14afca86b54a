"""quantize(): a Hugging Face checkpoint in, a 4-bit checkpoint out, a block at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from awqkit.background import Background
from awqkit.calibration.dataset import CalibrationRows, token_digest
from awqkit.calibration.rows import is_local_file, make_rows
from awqkit.checkpoint import Checkpoint, open_checkpoint, refuse_occupied
from awqkit.checkpoint.staging import ResumableFolder, reporting_output_errors, resumable_folder
from awqkit.checkpoint.writer import CheckpointWriter, WriterState, refuse_small_disk
from awqkit.config import QuantConfig
from awqkit.device import begin_peak, peak_bytes, resolve_device
from awqkit.head import check_head
from awqkit.journal import Journal, Progressed
from awqkit.planning import check_quantizable, planned_bytes
from awqkit.progress import Progress, Silent
from awqkit.report import REPORT_NAME, Calibration, Report, read_report
from awqkit.resuming import kept_if_resumable, open_journal
from awqkit.run import NamedWeight, Run, compute_dtype
from awqkit.run_identity import require_same, run_identity, source_digests
from awqkit.stopwatch import Stopwatch
from awqkit.version import VERSION

WRITER = "writer."


def quantize(
    model_path: str | Path,
    output_path: str | Path,
    config: QuantConfig | None = None,
    *,
    calib_dataset: str = "pileval",
    device: str = "auto",
    progress: Progress | None = None,
    resume: bool | None = None,
) -> Report:
    """Quantize a model's linears to 4 bits and write the result to output_path.

    model_path: a folder in Hugging Face form, or a hub id.
    calib_dataset: a known name, a file, a hub id, or "self".
    resume: True goes on where an earlier call with the same arguments was stopped, and gives the
        bytes that it would have given; False begins anew and drops what that one did; None refuses
        to choose where some blocks are done.
    Raises an AwqkitError that says what is wrong and what to do. Until the result is complete there
    is nothing at output_path.
    """
    task = _Task(
        output=Path(output_path).expanduser().resolve(),
        config=config or QuantConfig(),
        dataset=calib_dataset,
        device=resolve_device(device),
        progress=progress or Silent(),
    )
    if not resume:
        refuse_occupied(task.output)
    checkpoint = open_checkpoint(model_path)
    unquantized = check_quantizable(checkpoint)
    if task.config.lm_head == "int4":
        check_head(checkpoint)
    if resume and (report := _complete_already(task, checkpoint)) is not None:
        return report
    refuse_occupied(task.output)
    with resumable_folder(task.output) as folder:
        journal = open_journal(folder, resume=resume, total=checkpoint.config.num_layers)
        with kept_if_resumable(folder, checkpoint.config.num_layers):
            return _convert(task, checkpoint, folder, journal, unquantized)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What the caller asked for."""

    output: Path
    config: QuantConfig
    dataset: str
    device: torch.device
    progress: Progress


def _convert(
    task: _Task,
    checkpoint: Checkpoint,
    folder: ResumableFolder,
    journal: Journal,
    unquantized: tuple[str, ...],
) -> Report:
    config, clock = task.config, Stopwatch(task.device)
    begin_peak(task.device)
    with clock.timed("calibration text"):
        rows = _rows(task, checkpoint, folder, journal)
    run = Run(checkpoint, config, rows, device=task.device, progress=task.progress, stopwatch=clock)
    writer = CheckpointWriter(
        folder.result, source=checkpoint, format=config.format, out=task.output
    )
    background = Background(task.device)
    try:
        _begin_or_go_on(task, checkpoint, folder, journal, run, writer)
        while run.blocks < checkpoint.config.num_layers:
            _write(list(run.next_block()), writer, background, clock)
            if journal.is_due(run.stream_bytes):
                with clock.timed("journal"):
                    background.wait()
                    _save(task, journal, run, writer)
        _write(list(run.last_weights()), writer, background, clock)
        with clock.timed("writing"):
            background.wait()
        report = _report(task, checkpoint, rows, run, unquantized)
        with clock.timed("reading back"):
            writer.finish({REPORT_NAME: report.to_json()}, device=task.device)
    finally:
        background.close()
        writer.close()
    folder.publish()
    seconds = {stage: round(seconds, 2) for stage, seconds in clock.seconds.items()}
    return replace(report, seconds=seconds, peak_bytes=peak_bytes(task.device))


def _write(
    weights: list[NamedWeight], writer: CheckpointWriter, background: Background, clock: Stopwatch
) -> None:
    def add_all() -> None:
        for name, weight in weights:
            writer.add(name, weight)

    with clock.timed("writing"):
        background.run(add_all)


def _rows(
    task: _Task, checkpoint: Checkpoint, folder: ResumableFolder, journal: Journal
) -> CalibrationRows:
    """The calibration rows, from the journal where it has them; then the identity is proven."""
    identity = run_identity(checkpoint, task.config, calib_dataset=task.dataset, device=task.device)
    if journal.exists:
        require_same(journal.identity, identity, folder=folder.path)
        rows = journal.calibration()
        # A data set of the hub or the model itself is not asked again: only a file can change.
        if is_local_file(task.dataset):
            now = _made_rows(task, checkpoint)
            require_same(_text_identity(rows), _text_identity(now), folder=folder.path)
        return rows
    rows = _made_rows(task, checkpoint)
    with reporting_output_errors(task.output):
        journal.begin(identity, rows)
    return rows


def _made_rows(task: _Task, checkpoint: Checkpoint) -> CalibrationRows:
    return make_rows(
        checkpoint,
        task.config,
        task.dataset,
        device=task.device,
        dtype=compute_dtype(task.device),
        on_token=task.progress.sampled,
    )


def _text_identity(rows: CalibrationRows) -> dict[str, Any]:
    return {
        "the SHA-256 of the calibration tokens": rows.digest,
        "the SHA-256 of the held-out tokens": token_digest(rows.held_out),
    }


def _begin_or_go_on(
    task: _Task,
    checkpoint: Checkpoint,
    folder: ResumableFolder,
    journal: Journal,
    run: Run,
    writer: CheckpointWriter,
) -> None:
    total = checkpoint.config.num_layers
    state = journal.load()
    if state is not None:
        tensors = state.tensors
        pending = {n.removeprefix(WRITER): t for n, t in tensors.items() if n.startswith(WRITER)}
        writer.restore(WriterState(document=state.document["writer"], tensors=pending))
        run.go_on_from(state)
        task.progress.begin(total, done=run.blocks)
        return
    folder.clear_result()
    refuse_small_disk(folder.path, checkpoint, task.output, further=2 * run.stream_bytes)
    writer.carry_tokenizer()
    task.progress.begin(total, done=0)
    for name, weight in run.first_weights():
        writer.add(name, weight)


def _save(task: _Task, journal: Journal, run: Run, writer: CheckpointWriter) -> None:
    """The files first, then what the journal says about them."""
    written, progressed = writer.state(), run.progressed()
    tensors = {WRITER + name: tensor for name, tensor in written.tensors.items()}
    with reporting_output_errors(task.output):
        journal.save(
            Progressed(
                blocks=progressed.blocks,
                document={**progressed.document, "writer": written.document},
                tensors={**progressed.tensors, **tensors},
            )
        )


def _report(
    task: _Task,
    checkpoint: Checkpoint,
    rows: CalibrationRows,
    run: Run,
    unquantized: tuple[str, ...],
) -> Report:
    return Report(
        version=VERSION,
        model=checkpoint.folder.name,
        output=str(task.output),
        config=task.config,
        source=source_digests(checkpoint),
        calibration=Calibration(
            source=rows.source,
            samples=rows.tokens.shape[0],
            seqlen=rows.tokens.shape[1],
            digest=rows.digest,
        ),
        sites=tuple(run.sites),
        unquantized=unquantized,
        bytes_before=checkpoint.weight_bytes(),
        bytes_after=planned_bytes(checkpoint, task.config),
        evaluation=run.evaluation,
        seconds={},
        peak_bytes={},
    )


def _complete_already(task: _Task, checkpoint: Checkpoint) -> Report | None:
    """The report of the result where the same command has come to its end, if only just."""
    report = read_report(task.output)
    if report is None:
        return None
    made = (report.version, report.model, report.config, report.source)
    if made != (VERSION, checkpoint.folder.name, task.config, source_digests(checkpoint)):
        return None
    # A process that was killed after putting the result in place has left an empty shell.
    with resumable_folder(task.output) as shell:
        shell.keep = False
    return replace(report, output=str(task.output))
