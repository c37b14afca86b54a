"""Where to compute, and how much memory that took."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from awqkit.errors import ConfigError, QuantizationError

#: Linux's account of this process, and where writing 5 makes it begin its peak anew.
HOST_PEAK, FORGET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")

#: By which a user tells torch's allocator what to do, by its names of today and before.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def resolve_device(name: str) -> torch.device:
    """auto (a GPU if there is one), cpu, cuda or cuda:N; ConfigError for what is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device is {name!r}; use auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device is {name!r}; use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda":
        _require_gpu(device)
    return device


def rank_devices(name: str, processes: int) -> tuple[torch.device, ...]:
    """One for each process: the first GPUs, or as often the CPU; ConfigError where they are not."""
    if processes < 1:
        raise ConfigError(f"--processes is {processes}; it must be at least 1.")
    device = resolve_device(name)
    if processes == 1 or device.type == "cpu":
        return (device,) * processes
    if device.index is not None:
        raise ConfigError(
            f"--device {name} is one GPU, and --processes {processes} takes as many: give --device "
            "cuda, and choose among GPUs with CUDA_VISIBLE_DEVICES."
        )
    count = torch.cuda.device_count()
    if processes > count:
        raise ConfigError(
            f"--processes is {processes}, a GPU for each, but torch sees {count} here: give at "
            f"most --processes {count}."
        )
    return tuple(torch.device("cuda", index) for index in range(processes))


def choose_gpu(device: torch.device) -> None:
    """What a new thread does first: else it takes the first GPU, and some of that one's memory."""
    if device.index is not None:
        torch.cuda.set_device(device)


def _require_gpu(device: torch.device) -> None:
    count = torch.cuda.device_count()
    if count == 0:
        raise ConfigError(
            f"--device is {device}, but torch sees no GPU here: use --device cpu, or install a "
            "CUDA build of torch and the driver."
        )
    if device.index is not None and device.index >= count:
        raise ConfigError(f"--device is {device}, but the last GPU here is cuda:{count - 1}.")


@contextmanager
def telling_of_full_memory(device: torch.device) -> Iterator[None]:
    """Turn what torch says where memory runs out into a QuantizationError."""
    try:
        yield
    except RuntimeError as error:
        # On a CPU it is no kind of error of its own.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate" not in str(error):
            raise
        raise QuantizationError(
            f"The memory of {device} is full. Give a smaller --batch-size or fewer "
            "--calib-samples, stop what else uses it, or take another device; --dry-run says what "
            "a conversion needs."
        ) from error


def join_freed_memory(device: torch.device) -> None:
    """Have torch map a GPU's memory in pieces that it can join when they are freed.

    Otherwise blocks of many sizes leave gaps: a third of what a conversion took. What the user has
    set for torch's allocator stays.
    """
    if device.type != "cuda" or any(name in os.environ for name in ALLOCATOR_VARIABLES):
        return
    configure = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if configure is not None:
        configure("expandable_segments:True")


def begin_peak(device: torch.device) -> None:
    """Forget the most memory that was held so far; on the host, where the kernel lets us."""
    if HOST_PEAK.exists():
        with suppress(OSError):
            FORGET_PEAK.write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> dict[str, int]:
    """The most memory since `begin_peak`: what this process has held on the host, and on a GPU."""
    peaks = {"memory": _host_peak()}
    if device.type == "cuda":
        peaks["GPU memory"] = torch.cuda.max_memory_allocated(device)
    return peaks


def _host_peak() -> int:
    """Of this program's own pages: getrusage also counts what its parent held when it forked."""
    if HOST_PEAK.exists():
        fields = dict(line.split(":", 1) for line in HOST_PEAK.read_text().splitlines())
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
