import threading

import pytest
import torch

from awqkit.background import Background


def test_on_a_cpu_a_task_runs_at_once() -> None:
    background, done = Background(torch.device("cpu")), []
    background.run(lambda: done.append(threading.current_thread()))
    assert done == [threading.current_thread()]
    background.close()


def test_beside_a_gpu_one_task_runs_at_a_time_and_its_error_is_raised() -> None:
    background, order, gate = Background(torch.device("cuda")), [], threading.Event()

    def first() -> None:
        gate.wait(10)
        order.append(1)

    def failing() -> None:
        order.append(2)
        raise ValueError("the disk is full")

    background.run(first)
    assert order == []
    gate.set()
    background.run(failing)
    assert order[0] == 1
    with pytest.raises(ValueError, match="the disk is full"):
        background.wait()
    background.wait()
    assert order == [1, 2]
    background.close()
