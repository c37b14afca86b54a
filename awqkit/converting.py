"""A conversion in the process that writes it, and in those that only share its rows."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import replace

import torch

from awqkit.background import Background
from awqkit.calibration.dataset import CalibrationRows
from awqkit.calibration.rows import SELF
from awqkit.checkpoint import Checkpoint
from awqkit.checkpoint.staging import ResumableFolder, reporting_output_errors
from awqkit.checkpoint.writer import CheckpointWriter, WriterState, refuse_small_disk
from awqkit.device import begin_peak, peak_bytes
from awqkit.journal import Journal, Progressed
from awqkit.planning import planned_bytes, unquantized_linears
from awqkit.progress import Progress, Silent
from awqkit.ranks.ranks import Ranks
from awqkit.report import REPORT_NAME, Calibration, Report
from awqkit.run import NamedWeight, Run
from awqkit.run_identity import source_digests
from awqkit.stopwatch import Stopwatch
from awqkit.task import Task
from awqkit.task_rows import rows_of
from awqkit.version import VERSION
from awqkit.warm_up import WarmUp

WRITER = "writer."


def convert(
    task: Task,
    checkpoint: Checkpoint,
    folder: ResumableFolder,
    journal: Journal,
    *,
    progress: Progress,
    ranks: Ranks,
) -> Report:
    """In the first process: write the result into the folder, and tell of it."""
    config, device = task.config, task.devices[0]
    clock = Stopwatch(device)
    begin_peak(device)
    with ExitStack() as open_ones:
        warming = open_ones.enter_context(closing(WarmUp(config, device)))
        if task.dataset != SELF:  # sampling takes the GPU
            warming.begin()
        with clock.timed("calibration text"):
            rows = rows_of(task, checkpoint, folder.path, journal, progress)
        warming.begin()
        ranks.broadcast(True, source=0)  # the journal has the rows
        with clock.timed("starting"):
            run = Run(
                checkpoint,
                config,
                rows,
                device=device,
                progress=progress,
                stopwatch=clock,
                ranks=ranks,
            )
        writer = CheckpointWriter(
            folder.result, source=checkpoint, format=config.format, out=task.output
        )
        open_ones.callback(writer.close)
        background = open_ones.enter_context(closing(Background(device)))
        if not _goes_on(journal, run, writer):
            _begin(task, folder, planned_bytes(checkpoint, config) + 2 * run.stream_bytes, writer)
            _write(run.first_weights(), writer, background, clock)
        with clock.timed("starting"):
            warming.wait()
        progress.begin(checkpoint.config.num_layers, done=run.blocks)
        while run.blocks < checkpoint.config.num_layers:
            _write(list(run.next_block()), writer, background, clock)
            if ranks.broadcast(journal.is_due(run.stream_bytes), source=0):
                with clock.timed("journal"):
                    background.wait()
                    _save(task, journal, run, writer)
        _write(list(run.last_weights()), writer, background, clock)
        with clock.timed("writing"):
            background.wait()
        report = _report(task, checkpoint, rows, run)
        with clock.timed("reading back"):
            writer.finish({REPORT_NAME: report.to_json()}, device=device)
    seconds = {stage: round(seconds, 2) for stage, seconds in clock.seconds.items()}
    return replace(report, seconds=seconds, peak_bytes=_peak_of_all(device, ranks))


def assist(task: Task, checkpoint: Checkpoint, folder: ResumableFolder, *, ranks: Ranks) -> None:
    """In any other process: pass its share of the rows through the model, and write nothing."""
    device = task.devices[ranks.rank]
    begin_peak(device)
    ranks.broadcast(None, source=0)
    journal = Journal(folder.journal)
    run = Run(
        checkpoint,
        task.config,
        journal.calibration(),
        device=device,
        progress=Silent(),
        stopwatch=Stopwatch(device),
        ranks=ranks,
    )
    state = journal.load(run.kept_rows())
    if state is not None:
        run.go_on_from(state)
    while run.blocks < checkpoint.config.num_layers:
        for _ in run.next_block():
            pass
        if ranks.broadcast(None, source=0):
            run.progressed()
    for _ in run.last_weights():
        pass
    _peak_of_all(device, ranks)


def _peak_of_all(device: torch.device, ranks: Ranks) -> dict[str, int]:
    """Of all processes: the sum of what they hold on the host, and the most on any one GPU."""
    own = peak_bytes(device)
    peaks = [ranks.broadcast(own, source) for source in range(ranks.count)]
    return {kind: (sum if kind == "memory" else max)(peak[kind] for peak in peaks) for kind in own}


def _write(
    weights: Iterable[NamedWeight],
    writer: CheckpointWriter,
    background: Background,
    clock: Stopwatch,
) -> None:
    """Beside the work that follows, where a GPU does that."""

    def add_all() -> None:
        for name, weight in weights:
            writer.add(name, weight)
        writer.flush()  # now, and not all at the end

    with clock.timed("writing"):
        background.run(add_all)


def _goes_on(journal: Journal, run: Run, writer: CheckpointWriter) -> bool:
    """Whether the journal has a state; run and writer then take it up."""
    state = journal.load(run.kept_rows())
    if state is None:
        return False
    tensors = state.tensors
    pending = {n.removeprefix(WRITER): t for n, t in tensors.items() if n.startswith(WRITER)}
    writer.restore(WriterState(document=state.document["writer"], tensors=pending))
    run.go_on_from(state)
    return True


def _begin(task: Task, folder: ResumableFolder, needed: int, writer: CheckpointWriter) -> None:
    folder.clear_result()
    refuse_small_disk(folder.path, task.output, needed)
    writer.carry_tokenizer()


def _save(task: Task, journal: Journal, run: Run, writer: CheckpointWriter) -> None:
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
    task: Task,
    checkpoint: Checkpoint,
    rows: CalibrationRows,
    run: Run,
) -> Report:
    return Report(
        version=VERSION,
        model=checkpoint.name,
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
        unquantized=unquantized_linears(checkpoint),
        bytes_before=checkpoint.weight_bytes(),
        bytes_after=planned_bytes(checkpoint, task.config),
        evaluation=run.evaluation,
        seconds={},
        peak_bytes={},
    )
