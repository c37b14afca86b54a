"""Captures that do not come to their end, with stand-ins for what torch has on a GPU alone."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from awqkit_runtime.engine.cuda_graphs import CudaGraphs


class _Graph:
    """As torch's: one capture at a time, which must be ended before another begins."""

    capturing = False
    trouble: BaseException | None = None

    def capture_begin(self, **settings: Any) -> None:
        assert not _Graph.capturing
        _Graph.capturing = True
        if _Graph.trouble is not None:
            raise _Graph.trouble

    def capture_end(self) -> None:
        if not _Graph.capturing:
            raise RuntimeError("nothing to end")
        _Graph.capturing = False

    def replay(self) -> None:
        raise AssertionError


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CudaGraphs:
    for name, stand_in in (
        ("CUDAGraph", _Graph),
        ("Stream", lambda device: None),
        ("stream", lambda stream: nullcontext()),
        ("synchronize", lambda device: None),
        ("graph_pool_handle", lambda: (0, 0)),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(_Graph, "capturing", False)
    monkeypatch.setattr(_Graph, "trouble", None)
    return CudaGraphs(torch.device("cpu"), pool_bytes=64)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no memory")])
def test_what_fails_within_a_capture_ends_it(graphs: CudaGraphs, error: BaseException) -> None:
    def compute() -> None:
        raise error

    with pytest.raises(type(error)):
        graphs.capture(compute)
    assert not _Graph.capturing
    graphs.capture(lambda: None)


def test_an_interrupt_as_a_capture_begins_ends_it_too(
    graphs: CudaGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Graph, "trouble", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        graphs.capture(lambda: None)
    monkeypatch.setattr(_Graph, "trouble", None)
    graphs.capture(lambda: None)
