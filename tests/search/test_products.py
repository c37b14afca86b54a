"""Where kernels cannot be compiled, the plain loops serve, and a note says so."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from awqkit.search import products


@pytest.fixture(autouse=True)
def forgotten():
    products.has_triton.cache_clear()
    yield
    products.has_triton.cache_clear()


@pytest.fixture
def new_gpu(monkeypatch) -> None:
    monkeypatch.setattr(products, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


def run_trial_as(monkeypatch, outcome) -> None:
    module = SimpleNamespace(run_trial=outcome, FAILURES=(RuntimeError,))
    monkeypatch.setitem(sys.modules, "awqkit.search.trial_kernel", module)


def test_kernels_run_where_one_does(monkeypatch, new_gpu) -> None:
    run_trial_as(monkeypatch, lambda device: None)
    assert products.has_triton()


def test_no_compiler_comes_with_torch(monkeypatch) -> None:
    monkeypatch.setattr(products, "find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match="without Triton"):
        assert not products.has_triton()


def test_an_old_gpu(monkeypatch, new_gpu) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.warns(RuntimeWarning, match=r"compute capability 8\.0"):
        assert not products.has_triton()


def test_what_the_compiler_lacks_is_told_once(monkeypatch, new_gpu, recwarn) -> None:
    def no_compiler(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler.")

    run_trial_as(monkeypatch, no_compiler)
    assert not products.has_triton() and not products.has_triton()
    (told,) = recwarn.list
    assert "Failed to find C compiler" in str(told.message)


@pytest.mark.gpu
def test_the_trial_succeeds_here() -> None:
    assert products.has_triton()
