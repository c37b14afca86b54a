"""What libraries make at their first use, made beside the reading of the weights."""

from __future__ import annotations

import threading
from unittest.mock import Mock

import pytest
import torch

from awqkit_runtime.engine import warm_up
from awqkit_runtime.layers.placement import Placement


def place(device: str) -> Placement:
    return Placement(device=torch.device(device), dtype=torch.bfloat16)


def test_on_a_gpu_they_are_made_before_the_block_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, made = threading.Event(), []

    def make(placement: Placement, head_dim: int) -> None:
        assert reading.wait(60)
        made.append((placement.device.type, head_dim, threading.current_thread()))

    monkeypatch.setattr(warm_up, "make_libraries", make)
    with warm_up.libraries_made_meanwhile(place("cuda"), 128):
        assert not made
        reading.set()
    ((device, head_dim, thread),) = made
    assert (device, head_dim) == ("cuda", 128)
    assert not thread.is_alive()  # What torch keeps by thread is free for others.


def test_what_goes_wrong_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "make_libraries", Mock(side_effect=RuntimeError("no memory")))
    with (
        pytest.raises(RuntimeError, match="no memory"),
        warm_up.libraries_made_meanwhile(place("cuda"), 128),
    ):
        pass


def test_on_a_cpu_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "make_libraries", Mock(side_effect=AssertionError))
    with warm_up.libraries_made_meanwhile(place("cpu"), 128):
        pass
