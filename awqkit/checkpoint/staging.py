"""A folder that appears whole or not at all: written beside its place under a hidden name, then
renamed."""

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
                f"The disk is full: {out} could not be written, and what there was of it has been "
                "removed. Free some space, or name a folder on another disk."
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
                _fsync(out.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


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


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
