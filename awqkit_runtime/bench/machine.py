"""What this machine is, and what it can do: memory bandwidth and rate of multiplication."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from awqkit_runtime.bench.timing import time_calls

#: More than the caches of any processor, and of any GPU.
_READ_BYTES = {"cpu": 2**28, "cuda": 2**32}
#: Rows of one factor of a product, and rows and columns of the other: what keeps either busy.
_PRODUCT = {"cpu": (512, 2048), "cuda": (8192, 8192)}
_SECONDS = 1.0


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second that a sum over a large array reads, at its best."""
    array = torch.ones(_READ_BYTES[device.type] // 4, device=device)
    return array.nbytes / min(time_calls(array.sum, device, seconds=_SECONDS))


def multiply_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiplications and adds per second of torch's matrix product, at its best."""
    height, width = _PRODUCT[device.type]
    rows = torch.randn(height, width, device=device, dtype=dtype)
    matrix = torch.randn(width, width, device=device, dtype=dtype)
    best = min(time_calls(lambda: rows @ matrix, device, seconds=_SECONDS))
    return 2 * height * width**2 / best


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Processor, threads, GPU and versions: what a figure needs beside it."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "awqkit": _own_version(),
    }


def current_commit() -> str | None:
    """The commit of the checkout that this code runs from; None where it is none."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # No git on this machine.
        return None
    return result.stdout.strip() or None


def _own_version() -> str:
    try:
        return version("awqkit")
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
