"""How far a conversion has come, kept on disk so that another process can go on with it.

`journal.json` names everything else and is replaced atomically, so that at any moment it describes
one whole state. Tensors are safetensors files; nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from awqkit.calibration.dataset import CalibrationRows, token_digest
from awqkit.checkpoint.json_file import read_json_object
from awqkit.checkpoint.staging import sync_folder
from awqkit.checkpoint.tensor_file import file_checksum, read_tensors, write_tensors
from awqkit.errors import CheckpointError, ResumeError

T = TypeVar("T")

JOURNAL_FILE = "journal.json"
#: The largest share of the time that saving may take.
SAVING_SHARE = 0.03
#: What a save is expected to write in a second, before one was measured.
EXPECTED_BYTES_PER_SECOND = 1e9


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """A state between two blocks. document: fit for JSON. tensors: of one dimension or more."""

    blocks: int
    document: dict[str, Any]
    tensors: dict[str, Tensor]


class Journal:
    """The journal of one conversion in a folder that exists."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fields: dict[str, Any] = {}
        self._saved_at = time.perf_counter()
        self._save_seconds: float | None = None
        if self._path.is_file():
            self._fields = self._sound(lambda: read_json_object(self._path))

    @property
    def exists(self) -> bool:
        return bool(self._fields)

    @property
    def blocks(self) -> int:
        """How many blocks are done, as far as another process would find them."""
        return int(self._fields.get("blocks", 0))

    @property
    def identity(self) -> dict[str, Any]:
        """What the conversion was begun with."""
        return dict(self._fields["identity"])

    def begin(self, identity: Mapping[str, Any], rows: CalibrationRows) -> None:
        """Note what the conversion is and what it calibrates on, before its first block."""
        name = "calibration.safetensors"
        checksum = write_tensors(
            self._folder / name, {"tokens": rows.tokens, "held_out": rows.held_out}
        )
        self._write(
            {
                "identity": dict(identity),
                "calibration": {"file": name, "checksum": checksum, "source": rows.source},
                "blocks": 0,
            }
        )

    def calibration(self) -> CalibrationRows:
        """The rows that the conversion was begun with."""
        fields = self._fields["calibration"]
        tensors = self._tensors(fields, {})
        return CalibrationRows(
            tokens=tensors["tokens"],
            held_out=tensors["held_out"],
            digest=token_digest(tensors["tokens"]),
            source=fields["source"],
        )

    def is_due(self, nbytes: int) -> bool:
        """Whether the time since the last save is long enough to afford another of nbytes."""
        seconds = self._save_seconds
        if seconds is None:
            seconds = nbytes / EXPECTED_BYTES_PER_SECOND
        return time.perf_counter() - self._saved_at >= seconds / SAVING_SHARE

    def save(self, state: Progressed) -> None:
        """Make `state` the one that `load` gives; the one before stays until this is complete."""
        start = time.perf_counter()
        name = f"streams-{state.blocks}.safetensors"
        checksum = write_tensors(self._folder / name, state.tensors)
        before = self._fields.get("streams")
        self._write(
            {
                **self._fields,
                "blocks": state.blocks,
                "streams": {"file": name, "checksum": checksum},
                "document": state.document,
            }
        )
        if before is not None and before["file"] != name:
            (self._folder / before["file"]).unlink(missing_ok=True)
        self._saved_at = time.perf_counter()
        self._save_seconds = self._saved_at - start

    def load(self, rows: Mapping[str, Sequence[int]]) -> Progressed | None:
        """The state of the last save, in host memory, or None before the first.

        rows: of the tensors that are named in it, these rows alone.
        """
        if "streams" not in self._fields:
            return None
        return Progressed(
            blocks=self.blocks,
            document=self._fields["document"],
            tensors=self._tensors(self._fields["streams"], rows),
        )

    @property
    def _path(self) -> Path:
        return self._folder / JOURNAL_FILE

    def _write(self, fields: dict[str, Any]) -> None:
        draft = self._folder / f"{JOURNAL_FILE}.new"
        with draft.open("w", encoding="utf-8") as file:
            json.dump(fields, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)
        sync_folder(self._folder)
        self._fields = fields

    def _tensors(
        self, fields: Mapping[str, Any], rows: Mapping[str, Sequence[int]]
    ) -> dict[str, Tensor]:
        path = self._folder / fields["file"]
        if not path.is_file() or file_checksum(path) != fields["checksum"]:
            raise self._damaged(f"{path.name} is not as it was written")
        return self._sound(lambda: read_tensors(path, rows))

    def _sound(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except CheckpointError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, what: str) -> ResumeError:
        return ResumeError(
            f"The journal of the interrupted conversion in {self._folder.parent} is damaged: "
            f"{what}. The conversion cannot be resumed; begin it anew with --no-resume."
        )
