"""The memory that a model may take, on this machine or on another one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from awqkit_runtime.config import EngineConfig, parse_size
from awqkit_runtime.engine.memory import free_memory, part_of_memory
from awqkit_runtime.errors import ConfigError

#: Less than this is a mistyped unit.
_SMALLEST_MEMORY = 2**20


@dataclass(frozen=True, kw_only=True)
class Room:
    """Memory in bytes, and the device that it belongs to."""

    memory: int
    device: torch.device
    #: "free now on this machine", or what the user gave.
    origin: str


def find_room(memory: str | None, engine: EngineConfig) -> Room:
    """What a rank has of the memory free on its device, or that of a card that need not be here.

    memory: such as "24GiB"; the device is then a GPU unless the engine's settings name another.
    ConfigError for a size that makes no sense, or a device that this machine lacks.
    """
    if memory is None:
        device = engine.torch_device()
        free = part_of_memory(free_memory(device), device, engine.tp)
        return Room(memory=free, device=device, origin="free on this machine now")
    size = parse_size(memory)
    if size < _SMALLEST_MEMORY:
        raise ConfigError(
            f"--memory is {size} bytes, which no model fits into; write the unit, as in 24GiB."
        )
    name = "cuda" if engine.device == "auto" else str(engine.device)
    return Room(memory=size, device=torch.device(name), origin=f"--memory {memory}")
