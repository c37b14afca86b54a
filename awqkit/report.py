"""What a quantization did: figures as data, and as JSON in the checkpoint."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from awqkit.block_quantizer import SiteResult
from awqkit.checkpoint.canonical import expert_prefix, layer_prefix
from awqkit.config import QuantConfig
from awqkit.errors import ConfigError, OutputError
from awqkit.evaluate import Evaluation
from awqkit.structure import from_document

#: The report's name inside a quantized checkpoint.
REPORT_NAME = "awqkit_report.json"
#: Fields of a Report that differ between two runs of the same command.
UNREPEATABLE = ("output", "seconds", "peak_bytes")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """digest: sha256 of the tokens, so that a run can be told from another."""

    source: str
    samples: int
    seqlen: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """model: the name of its folder.  source: SHA-256 by file.  bytes: of all tensors on disk.

    seconds: by stage.  peak_bytes: the most memory that was taken, by where.  Neither is part of
    the JSON, so that the same run gives the same bytes.
    """

    version: str
    model: str
    output: str
    config: QuantConfig
    source: dict[str, str]
    calibration: Calibration
    sites: tuple[SiteResult, ...]
    unquantized: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    evaluation: Evaluation | None
    seconds: dict[str, float]
    peak_bytes: dict[str, int]

    @property
    def starved(self) -> tuple[str, ...]:
        """The experts that were quantized for all experts' tokens, for want of their own."""
        return tuple(
            f"{layer_prefix(site.layer)}{expert_prefix(each.expert)} ({each.tokens} tokens)"
            for site in self.sites
            for each in site.starved
        )

    def to_json(self) -> str:
        """What two equal runs have in common: no times, and no paths of the machine."""
        document = asdict(self)
        for field in UNREPEATABLE:
            del document[field]
        return json.dumps(document, indent=1)


def read_document(folder: Path) -> dict[str, Any] | None:
    """The JSON that a quantization left in its folder, or None where there is none to read."""
    try:
        document = json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def read_report(folder: Path) -> Report | None:
    """The report in a quantized checkpoint; None where there is none of this version's form."""
    document = read_document(folder)
    if document is None:
        return None
    repeated: dict[str, Any] = {"output": str(folder), "seconds": {}, "peak_bytes": {}}
    try:
        return from_document(Report, {**document, **repeated})
    except (ValueError, KeyError, TypeError, ConfigError):
        return None


def refuse_unwritable(path: Path) -> None:
    """Raise OutputError where a report could not be written, before the long work begins."""
    folder = path.absolute().parent
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(
            f"The report cannot be written to {path}: "
            f"{'it is a folder' if path.is_dir() else f'{folder} is no folder to write into'}. "
            "Give another place with --report."
        )
