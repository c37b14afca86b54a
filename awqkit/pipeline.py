"""quantize(): a Hugging Face checkpoint in, a 4-bit checkpoint out, a block at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from awqkit.checkpoint import Checkpoint, open_checkpoint, refuse_occupied
from awqkit.checkpoint.staging import ResumableFolder, resumable_folder
from awqkit.config import QuantConfig
from awqkit.converting import assist, convert
from awqkit.device import join_freed_memory, rank_devices, telling_of_full_memory
from awqkit.errors import ConfigError
from awqkit.journal import Journal
from awqkit.planning import check_quantizable
from awqkit.progress import Progress, Silent
from awqkit.ranks.group import Group
from awqkit.ranks.ranks import ALONE
from awqkit.ranks.supervisor import run_processes
from awqkit.report import Report, read_report
from awqkit.resuming import kept_if_resumable, open_journal
from awqkit.run_identity import source_digests
from awqkit.task import Task
from awqkit.version import VERSION
from awqkit.vocabulary import check_vocabulary


def quantize(
    model_path: str | Path,
    output_path: str | Path,
    config: QuantConfig | None = None,
    *,
    calib_dataset: str = "pileval",
    device: str = "auto",
    processes: int = 1,
    progress: Progress | None = None,
    resume: bool | None = None,
) -> Report:
    """Quantize a model's linears to 4 bits and write the result to output_path.

    model_path: a folder in Hugging Face form, or a hub id.
    calib_dataset: a known name, a file, a hub id, or "self".
    processes: that share the calibration rows, each on a GPU of its own, or all on the CPU; the
        result has the bytes that one alone would give.
    resume: True goes on where an earlier call with the same arguments was stopped, and gives the
        bytes that it would have given; False begins anew and drops what that one did; None refuses
        to choose where some blocks are done.
    Raises an AwqkitError that says what is wrong and what to do. Until the result is complete there
    is nothing at output_path.
    """
    output, config = Path(output_path).expanduser().resolve(), config or QuantConfig()
    devices = rank_devices(device, processes)
    check_shareable(config, processes)
    if not resume:
        refuse_occupied(output)
    checkpoint = open_checkpoint(model_path)
    check_quantizable(checkpoint)
    check_vocabulary(checkpoint, config)
    task = Task(
        model=checkpoint.folder,
        output=output,
        config=config,
        dataset=calib_dataset,
        devices=devices,
    )
    if resume and (report := _complete_already(task, checkpoint)) is not None:
        return report
    refuse_occupied(output)
    with resumable_folder(output) as folder:
        blocks = checkpoint.config.num_layers
        journal = open_journal(folder, resume=resume, total=blocks)
        with kept_if_resumable(folder, blocks):
            progress = progress or Silent()
            if processes == 1:
                join_freed_memory(devices[0])
                with telling_of_full_memory(devices[0]):
                    report = convert(
                        task, checkpoint, folder, journal, progress=progress, ranks=ALONE
                    )
            else:
                report = _convert_together(task, progress)
            folder.publish()
            return report


def check_shareable(config: QuantConfig, processes: int) -> None:
    """Raise ConfigError where a conversion cannot be shared by so many processes."""
    if processes > 1 and config.quality == "best":
        raise ConfigError(
            "--quality best tunes the whole model in steps of a few rows, each upon the last one, "
            "which --processes cannot share out. Leave out --processes, or take --quality balanced."
        )


def _convert_together(task: Task, progress: Progress) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        work = partial(_part, task, Path(folder) / "meeting", torch.get_num_threads())
        report: Report = run_processes(
            len(task.devices), work, on_message=lambda told: told.on(progress)
        )
        return report


def _part(
    task: Task, meeting: Path, threads: int, rank: int, tell: Callable[[Any], None]
) -> Report | None:
    """One process's part of a conversion."""
    torch.set_num_threads(threads)
    device = task.devices[rank]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    join_freed_memory(device)
    ranks = Group(rank=rank, count=len(task.devices), device=device, meeting=meeting)
    checkpoint, folder = open_checkpoint(task.model), ResumableFolder(task.output)
    with telling_of_full_memory(device):
        if rank:
            assist(task, checkpoint, folder, ranks=ranks)
            return None
        progress = cast(Progress, _Forwarder(tell))
        journal = Journal(folder.journal)
        return convert(task, checkpoint, folder, journal, progress=progress, ranks=ranks)


@dataclass(frozen=True)
class _Call:
    """A call of a method of the progress that is shown in another process."""

    method: str
    arguments: tuple[Any, ...]
    named: dict[str, Any]

    def on(self, progress: Progress) -> None:
        getattr(progress, self.method)(*self.arguments, **self.named)


class _Forwarder:
    """A progress that passes every call on to the process that shows it."""

    def __init__(self, tell: Callable[[Any], None]) -> None:
        self._tell = tell

    def __getattr__(self, method: str) -> Callable[..., None]:
        return lambda *arguments, **named: self._tell(_Call(method, arguments, named))


def _complete_already(task: Task, checkpoint: Checkpoint) -> Report | None:
    """The report of the result where the same command has come to its end, if only just."""
    report = read_report(task.output)
    if report is None:
        return None
    made = (report.version, report.model, report.config, report.source)
    if made != (VERSION, checkpoint.name, task.config, source_digests(checkpoint)):
        return None
    # A process that was killed after putting the result in place has left an empty shell.
    with resumable_folder(task.output) as shell:
        shell.keep = False
    return replace(report, output=str(task.output))
