"""A rank that says that it is there, and ends before it has connected."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

#: In place of Python.
_RANK = """#!{python}
import os, sys, time
import torch.distributed as dist
from awqkit_runtime.engine.parallel.communicator import LOOPBACK, arrival_key
from awqkit_runtime.engine.parallel.messages import read_assignment
assignment = read_assignment(sys.stdin.buffer)
dist.TCPStore(LOOPBACK, assignment.port).set(arrival_key(assignment.rank), "")
time.sleep(0.5)
os._exit(3)
"""
_START = """
import sys
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.loading import load_engine
from awqkit_runtime.errors import RankError
folder, device, sys.executable = sys.argv[1:]
try:
    load_engine(folder, EngineConfig(device=device, tp=2))
except RankError as error:
    print(error)
"""


def start_with_it(model: Path, device: str, folder: Path) -> tuple[str, float]:
    """What starting two ranks fails with, and how long it takes to the end of the process, seconds.

    In a process of its own: what waits for the rank there is left to itself.
    """
    rank = folder / "rank"
    rank.write_text(_RANK.format(python=sys.executable))
    rank.chmod(0o755)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _START, str(model), device, str(rank)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, time.monotonic() - start
