"""Where kernels cannot be compiled, the plain loops serve, and a note says so."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
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


def test_threads_that_round_products_leave_those_of_others_and_the_switch_alone() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    seen = set()

    def round_products() -> None:
        for _ in range(300):
            with products._switched("fp32_precision", "tf32"):
                time.sleep(0)

    def want_exact_ones() -> None:
        for _ in range(300):
            with products.exact_products():
                seen.add(matmul.fp32_precision)
                time.sleep(0)

    with ThreadPoolExecutor(4) as threads:
        works = [round_products, want_exact_ones, round_products, round_products]
        for each in [threads.submit(work) for work in works]:
            each.result()
    assert seen == {before}
    assert matmul.fp32_precision == before
