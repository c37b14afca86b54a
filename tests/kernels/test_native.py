"""Loading of the compiled library, and what happens where there is none."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from awqkit.checkpoint.quantized_weight import QuantizedWeight
from awqkit_runtime.kernels import native
from awqkit_runtime.kernels.w4_linear import pack_w4, w4_linear

CACHES = (native.library, native.supported_isas, native.cpu_isa)
needs_library = pytest.mark.skipif(native.library() is None, reason="the library is not built")


@pytest.fixture
def fresh_caches() -> Iterator[None]:
    for cached in CACHES:
        cached.cache_clear()
    yield
    for cached in CACHES:
        cached.cache_clear()


def a_weight() -> QuantizedWeight:
    codes = torch.arange(16 * 128, dtype=torch.uint8).view(16, 128) % 16
    scales, zeros = torch.ones(16, 1).half(), torch.full((16, 1), 7, dtype=torch.uint8)
    return QuantizedWeight(codes=codes, scales=scales, zeros=zeros)


@needs_library
def test_the_fastest_supported_variant_is_chosen() -> None:
    supported = native.supported_isas()
    assert supported[:2] == (native.REFERENCE, "scalar")
    assert native.cpu_isa() == supported[-1]


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="torch's wheels for Linux use OpenMP")
def test_threads_are_those_of_torch() -> None:
    assert native.parallel_region() is not None


@pytest.mark.usefixtures("fresh_caches")
def test_without_the_library_torch_computes_and_one_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "LIBRARY_PATH", tmp_path / "_cpu.so")
    packed = pack_w4(a_weight())
    with pytest.warns(UserWarning, match="were not built.*C\\+\\+ compiler"):
        out = w4_linear(torch.ones(1, 128), packed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        w4_linear(torch.ones(1, 128), packed)
    assert native.cpu_isa() == native.REFERENCE
    assert torch.equal(out, torch.ones(1, 128) @ a_weight().dequantize().T)


@pytest.mark.usefixtures("fresh_caches")
def test_a_library_that_does_not_load_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "_cpu.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(native, "LIBRARY_PATH", broken)
    with pytest.warns(UserWarning, match="cannot be used"):
        assert native.cpu_isa() == native.REFERENCE


@needs_library
@pytest.mark.usefixtures("fresh_caches")
def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ABI_VERSION", -1)
    with pytest.warns(UserWarning, match="built from other sources"):
        assert native.cpu_isa() == native.REFERENCE
