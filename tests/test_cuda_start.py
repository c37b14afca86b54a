"""A GPU's start in a thread: whose devices it begins, and that nothing of it disturbs."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from typing import Any

import pytest

from awqkit_runtime import cuda_start


class _Driver:
    """As the library, with some devices."""

    def __init__(self, devices: int) -> None:
        self.devices = devices
        self.retained: list[int] = []

    def cuInit(self, flags: int) -> int:
        return 0 if self.devices else 100

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = 7 + number
        return 0 if number < self.devices else 101

    def cuDevicePrimaryCtxRetain(self, context: Any, device: ctypes.c_int) -> int:
        self.retained.append(device.value)
        return 0


def started(device: str, driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", driver)
    before = set(threading.enumerate())
    cuda_start.start_cuda(device)
    for thread in set(threading.enumerate()) - before:
        thread.join()


@pytest.mark.parametrize(
    ("device", "devices", "retained"),
    [
        ("auto", 1, [7]),
        ("cuda", 2, [7]),
        ("cuda:1", 2, [8]),
        ("cuda:1", 1, []),
        ("auto", 0, []),
        ("cpu", 1, []),
        ("mps", 1, []),
    ],
)
def test_the_device_that_is_meant_is_started(
    device: str, devices: int, retained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = _Driver(devices)
    started(device, lambda name: driver, monkeypatch)
    assert driver.retained == retained


def test_without_a_driver_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    started("cuda", missing, monkeypatch)


@pytest.mark.gpu
def test_torch_goes_on_in_the_context() -> None:
    code = (
        "from awqkit_runtime.cuda_start import start_cuda; start_cuda('cuda')\n"
        "import torch; print(torch.arange(5, device='cuda').sum().item())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == "10"
