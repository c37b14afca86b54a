"""What processes of these tests do; they import it by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tell = Callable[[Any], None]


def own_number(rank: int, tell: Tell) -> int:
    tell(f"from {rank}")
    return 10 + rank


def second_fails(rank: int, tell: Tell) -> None:
    if rank:
        raise ValueError("not finite")
    time.sleep(600)


def second_is_killed(rank: int, tell: Tell) -> None:
    if rank:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def first_misses_the_second(meeting: Path, rank: int, tell: Tell) -> None:
    import torch

    from awqkit.ranks.group import Group

    ranks = Group(rank=rank, count=2, device=torch.device("cpu"), meeting=meeting)
    assert int(ranks.total(torch.tensor([rank + 1]))) == 3
    value = {"a": torch.arange(3) if rank else torch.zeros(1), "b": ("text", rank)}
    assert ranks.broadcast(value, 1)["a"].tolist() == [0, 1, 2]
    if rank:
        time.sleep(0.2)
        os._exit(7)
    ranks.broadcast(None, 1)


def wait(rank: int, tell: Tell) -> None:
    tell(os.getpid())
    time.sleep(600)


def main() -> None:
    """For Ctrl-C: two processes that wait, whose numbers are printed."""
    from awqkit.console import paragraph_errors
    from awqkit.ranks.supervisor import run_processes

    paragraph_errors(run_processes)(2, wait, on_message=lambda pid: print(pid, flush=True))
