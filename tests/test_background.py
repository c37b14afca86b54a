import threading

import pytest
import torch

from awqkit import QuantConfig, quantize
from awqkit.background import Background
from tests.tiny_models import write_tiny_model


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


def test_blocks_written_beside_the_work_are_the_same_bytes(tmp_path, monkeypatch) -> None:
    source = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    config = QuantConfig(calib_samples=6, calib_seqlen=32, quality="fast", evaluate=False)
    threaded = Background(torch.device("cuda"))
    quantize(source, tmp_path / "one by one", config, calib_dataset="self", device="cpu")
    monkeypatch.setattr("awqkit.converting.Background", lambda device: threaded)
    quantize(source, tmp_path / "beside", config, calib_dataset="self", device="cpu")
    first, second = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one by one", "beside")
    )
    assert first == second
