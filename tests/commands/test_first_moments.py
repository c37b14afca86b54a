"""Ctrl-C in the second that the programs take to import what they need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Stands for the largest import, in whose middle Ctrl-C comes.
TORCH = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(1)
raise SystemExit(7)
"""


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    (folder / "torch.py").write_text(TORCH, encoding="utf-8")
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize(
    "code",
    [
        "from awqkit.scripts import convert; convert()",
        "from awqkit.scripts import inspect; inspect()",
        "from awqkit_runtime.__main__ import main; main()",
    ],
)
def test_a_program_ends_without_a_traceback(tmp_path: Path, code: str) -> None:
    result = run(tmp_path, code)
    assert (result.returncode, result.stderr) == (130, "")


@pytest.mark.parametrize("module", ["serve.worker", "engine.parallel"])
def test_a_process_beside_it_leaves_the_end_to_the_program(tmp_path: Path, module: str) -> None:
    result = run(tmp_path, f"from awqkit_runtime.{module}.__main__ import main; main()")
    assert (result.returncode, result.stderr) == (7, "")
