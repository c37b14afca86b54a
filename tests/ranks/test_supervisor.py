"""Processes are started, watched, and none is left, however the work ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from awqkit.errors import QuantizationError
from awqkit.ranks.supervisor import run_processes
from tests.ranks import works

ROOT = Path(__file__).parents[2]


def nothing(message: object) -> None:
    raise AssertionError(message)


def test_the_first_ones_result_and_what_all_tell() -> None:
    told: list[str] = []
    assert run_processes(3, works.own_number, on_message=told.append) == 10
    assert sorted(told) == ["from 0", "from 1", "from 2"]


def test_an_error_of_any_is_raised_and_nobody_is_waited_for() -> None:
    with pytest.raises(ValueError, match="not finite"):
        run_processes(2, works.second_fails, on_message=nothing)


def test_one_that_is_killed_is_named() -> None:
    with pytest.raises(QuantizationError, match=r"Process 2 of the 2 .* SIGKILL.*memory"):
        run_processes(2, works.second_is_killed, on_message=nothing)


def test_one_that_dies_is_named_and_not_the_one_that_misses_it(tmp_path) -> None:
    work = partial(works.first_misses_the_second, tmp_path / "meeting")
    with pytest.raises(QuantizationError, match=r"Process 2 of the 2 .* ended with code 7"):
        run_processes(2, work, on_message=nothing)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_ctrl_c_and_a_killed_parent_leave_no_process(number: signal.Signals, code: int) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", "from tests.ranks import works; works.main()"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert all(int(parent.stdout.readline()) for _ in range(2))
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # as a terminal does
    else:
        parent.send_signal(number)
    _, errors = parent.communicate(timeout=60)  # once nobody has the pipe any more
    assert parent.returncode == code
    assert "Traceback" not in errors and ("Interrupted" in errors) == (code == 130)
