"""Warnings of ours reach a terminal as sentences, without the place in the source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.tiny_models import write_tiny_model

ROOT = Path(__file__).parents[2]


def test_a_warning_is_one_sentence(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model", "mixtral")
    script = (
        "from awqkit_runtime.notes import quiet_libraries; "
        "from awqkit_runtime.models.loader import load_decoder; quiet_libraries(); "
        f"load_decoder({str(folder)!r}, device='cpu')"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=120,
    )
    notes = [line for line in result.stderr.splitlines() if "kernel" in line]
    assert len(notes) == 1 and notes[0].startswith("Note: There is no kernel yet")
    assert ".py" not in result.stderr
