"""What a figure needs to be believed: the machine, the commit and the command beside it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def save_results(path: Path, **figures: Any) -> None:
    """Write figures as JSON, with where and how they were measured."""
    document = {
        "command": " ".join(["python", *(_shown(argument) for argument in sys.argv)]),
        "commit": _commit(),
        "machine": machine(),
        **figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"Written to {path}")


def machine() -> dict[str, str | int]:
    """The processor, its threads, the GPU if there is one, and the versions that count."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _shown(argument: str) -> str:
    """A path that leaves this folder by its name alone: where it lies is this machine's affair."""
    path = Path(argument)
    outside = path.is_absolute() or ".." in path.parts
    return path.name if outside else argument


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = Path(__file__).parent
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
