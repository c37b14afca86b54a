"""Ctrl-C in the second that a rank takes to import what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
#: Stands for the largest import, in whose middle Ctrl-C comes.
TORCH = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(1)
raise SystemExit(7)
"""


def test_the_end_is_left_to_rank_0(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(TORCH, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-c", "from awqkit_runtime.engine.parallel.__main__ import main; main()"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (result.returncode, result.stderr) == (7, "")
