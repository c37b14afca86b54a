"""Without what the CUDA kernels need, the reason and its cure are named."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from awqkit_runtime.kernels.cuda import availability
from awqkit_runtime.kernels.cuda.compiler import architecture

DEVICE = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("missing", "package"), [("cupy", "CuPy"), ("cuda.bindings.driver", "cuda-bindings")]
)
def test_a_missing_package_is_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, missing: str, package: str
) -> None:
    for name in ("cupy", "cuda", "cuda.bindings", "cuda.bindings.driver"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else ModuleType(name))
    reason = availability.missing_for_cuda.__wrapped__(DEVICE)
    assert reason is not None
    assert package in reason and "pip install 'awqkit[cuda]'" in reason


def test_an_old_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cupy", "cuda", "cuda.bindings", "cuda.bindings.driver"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old Card")
    reason = availability.missing_for_cuda.__wrapped__(DEVICE)
    assert reason == "Old Card has compute capability 7.5, and they need 8.0"


def test_the_reason_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "missing_for_cuda", lambda device: "of the weather")
    with pytest.warns(UserWarning, match="4-bit models run slowly: of the weather"):
        assert not availability.cuda_kernels_usable(DEVICE)
    assert not availability.cuda_kernels_usable(DEVICE)


def test_architectures_are_those_of_the_chip() -> None:
    names = [architecture(c) for c in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))]
    assert names == ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"]
