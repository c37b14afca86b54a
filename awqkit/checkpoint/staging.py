"""A folder that appears whole or not at all: written beside its place under a hidden name, then
renamed. It can outlive a process that is stopped, so that another goes on with it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from awqkit.checkpoint.errors import OutputError


def refuse_occupied(out: Path) -> None:
    """Raise OutputError if `out` exists and is not an empty folder."""
    with reporting_output_errors(out):
        is_folder = out.is_dir()
        is_taken = any(out.iterdir()) if is_folder else out.exists() or out.is_symlink()
    if is_taken and is_folder:
        raise OutputError(
            f"The output folder {out} already holds something, and nothing is overwritten. "
            "Name a new folder, or empty this one."
        )
    if is_taken:
        raise OutputError(f"The output {out} is a file. Name a folder that is new or empty.")


@contextlib.contextmanager
def reporting_output_errors(out: Path) -> Iterator[None]:
    """Turn what the operating system refuses while `out` is written into an OutputError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"The disk is full: {out} could not be written. "
                "Free some space, or name a folder on another disk."
            ) from error
        raise OutputError(
            f"{out} could not be written: {error.strerror or error}. "
            "Name a folder in a place that you may write to."
        ) from error


@contextlib.contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `out` that takes its place at the end.

    Whatever ends the block early, an exception or Ctrl-C, removes the hidden folder. A killed
    process leaves one behind, which the next run for the same `out` removes.
    """
    with reporting_output_errors(out):
        refuse_occupied(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        stage = out.parent / f"{_stage_prefix(out)}{os.getpid()}-{secrets.token_hex(4)}"
        stage.mkdir()
    try:
        with _locked(stage):
            yield stage
            with reporting_output_errors(out):
                _flush_to_disk(stage)
                refuse_occupied(out)
                stage.rename(out)
                sync_folder(out.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


class ResumableFolder:
    """A hidden folder beside `out` that stays after a stop if there is something worth keeping.

    result: becomes `out`.  journal: for notes on how far the work has come.  keep: whether
    the folder stays when this process lets go of it.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = unfinished_path(out)
        self.result = self.path / "checkpoint"
        self.journal = self.path / "journal"
        self.keep = True

    def clear(self) -> None:
        """Make both folders empty."""
        with reporting_output_errors(self.out):
            for folder in (self.journal, self.result):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()

    def clear_result(self) -> None:
        """Make the result's folder empty."""
        with reporting_output_errors(self.out):
            shutil.rmtree(self.result, ignore_errors=True)
            self.result.mkdir()

    def publish(self) -> None:
        """Put the result in its place."""
        with reporting_output_errors(self.out):
            _flush_to_disk(self.result)
            refuse_occupied(self.out)
            self.result.rename(self.out)
            sync_folder(self.out.parent)
        self.keep = False


@contextlib.contextmanager
def resumable_folder(out: Path) -> Iterator[ResumableFolder]:
    """The hidden folder of `out`, new or as an earlier process left it, held by this process alone.

    It is removed at the end unless `keep` is set. Raises OutputError where another process that
    writes the same result is alive.
    """
    folder = ResumableFolder(out)
    with reporting_output_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        folder.path.mkdir(exist_ok=True)
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(_locked(folder.path))
        except BlockingIOError as error:
            raise OutputError(
                f"Another process is writing {out} at this moment. "
                "Wait for it, stop it, or name another folder."
            ) from error
        try:
            yield folder
        finally:
            if not folder.keep:
                shutil.rmtree(folder.path, ignore_errors=True)


def unfinished_path(out: Path) -> Path:
    """Where a stopped conversion into `out` leaves what it has."""
    return out.parent / f".{out.name}.partial"


def _stage_prefix(out: Path) -> str:
    return f".{out.name}.partial-"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder, which the kernel releases however the process ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _remove_abandoned(out: Path) -> None:
    for stage in out.parent.glob(f"{_stage_prefix(out)}*"):
        try:
            with _locked(stage):
                shutil.rmtree(stage, ignore_errors=True)
        except OSError:
            # A live run holds the lock, or somebody else's folder cannot be opened: leave it.
            continue


def _flush_to_disk(folder: Path) -> None:
    """Without this the rename could reach the disk before the bytes do."""
    for path in folder.rglob("*"):
        _fsync(path)
    _fsync(folder)


def sync_folder(folder: Path) -> None:
    """See that the names in a folder reach the disk."""
    _fsync(folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
