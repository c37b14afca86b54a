"""What becomes of a conversion that was stopped: kept, refused, gone on with or dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from awqkit.checkpoint.staging import ResumableFolder
from awqkit.errors import ResumeError
from awqkit.journal import Journal


def open_journal(folder: ResumableFolder, *, resume: bool | None, total: int) -> Journal:
    """The journal of an earlier call where it is to be resumed, else an empty one."""
    folder.keep = folder.journal.exists()
    journal = Journal(folder.journal) if resume is not False else None
    if journal is not None and journal.blocks and resume is None:
        raise ResumeError(
            f"An earlier conversion into {folder.out} was stopped after {journal.blocks} of "
            f"{total} blocks; what it did lies in {folder.path}. Add --resume to go on with it, or "
            "--no-resume to drop it and begin anew."
        )
    if journal is not None and journal.exists and resume:
        folder.keep = journal.blocks > 0
        return journal
    folder.keep = False
    folder.clear()
    return Journal(folder.journal)


@contextmanager
def kept_if_resumable(folder: ResumableFolder, total: int) -> Iterator[None]:
    """Keep what a stopped conversion has done, and say so with what stopped it."""
    try:
        yield
    except BaseException as error:
        # Read anew: a signal may arrive between a save and this process's own note of it.
        blocks = Journal(folder.journal).blocks
        folder.keep = blocks > 0
        if blocks and not isinstance(error, ResumeError):
            error.add_note(
                f"{blocks} of {total} blocks are done and kept; the same command with "
                "--resume goes on from there."
            )
        raise
