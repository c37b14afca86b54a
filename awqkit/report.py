"""What a quantization did: figures as data, as JSON in the checkpoint, and as an HTML page."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from awqkit.block_quantizer import SiteResult
from awqkit.config import QuantConfig
from awqkit.errors import OutputError
from awqkit.evaluate import Evaluation

#: The report's name inside a quantized checkpoint.
REPORT_NAME = "awqkit_report.json"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """digest: sha256 of the tokens, so that a run can be told from another."""

    source: str
    samples: int
    seqlen: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """bytes: of all tensors on disk. seconds: by stage."""

    version: str
    model: str
    output: str
    config: QuantConfig
    calibration: Calibration
    sites: tuple[SiteResult, ...]
    unquantized: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    evaluation: Evaluation | None
    seconds: dict[str, float]

    def to_json(self) -> str:
        """The figures of the run, without the paths of the machine that it ran on."""
        document = asdict(self)
        document["model"] = Path(self.model).name
        del document["output"]
        return json.dumps(document, indent=1)


def refuse_unwritable(path: Path) -> None:
    """Raise OutputError where a report could not be written, before the long work begins."""
    folder = path.absolute().parent
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(
            f"The report cannot be written to {path}: "
            f"{'it is a folder' if path.is_dir() else f'{folder} is no folder to write into'}. "
            "Give another place with --report."
        )


def write_html(report: Report, path: Path) -> None:
    """Write the report as one self-contained page. Raises OutputError where it cannot."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(loader=PackageLoader("awqkit"), autoescape=select_autoescape())
    page = environment.get_template("report.html.jinja").render(report=report)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"The report cannot be written to {path}: {error.strerror}. "
            "Give another place with --report."
        ) from error
