"""What one conversion is about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from awqkit.config import QuantConfig


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the caller asked for. devices: of the processes that share it, one for each."""

    model: Path
    output: Path
    config: QuantConfig
    dataset: str
    devices: tuple[torch.device, ...]
