"""Many short arrays of int32 in one: a step's numbers go to the device in one copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Every array begins at a multiple of so many numbers, 64 bytes.
_ALIGNMENT = 16


class IntArrays:
    """Arrays are added on the host, sent once, and found again by the place that add() gave."""

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def add(self, numbers: Sequence[int]) -> slice:
        start = len(self._numbers)
        self._numbers += [*numbers, *[0] * (-len(numbers) % _ALIGNMENT)]
        return slice(start, start + len(numbers))

    def send(self, device: torch.device) -> Tensor:
        """int32; slices of it are the arrays. Nothing waits for the device."""
        return send(torch.tensor(self._numbers, dtype=torch.int32), device)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on the device; to a GPU without waiting for what it computes."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
