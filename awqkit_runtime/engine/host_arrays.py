"""Small arrays from the host to a device: all of them in one copy, which nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Where an array may begin in the joint buffer: a multiple of every element's size.
_ALIGNMENT = 16

Array = NDArray[Any]


def to_device(arrays: Sequence[Array], device: torch.device) -> list[Tensor]:
    """A tensor on the device for each array, of its shape and type.

    To a GPU they go in one asynchronous copy on the current stream, from pinned memory that torch
    does not give to others before the copy is done.
    """
    if device.type != "cuda":
        return [torch.from_numpy(array) for array in arrays]
    starts = [0, *accumulate(_sizes(arrays))]
    staging = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    _pack(arrays, starts, staging.numpy())
    packed = staging.to(device, non_blocking=True)
    return _unpack(arrays, starts, packed)


def copy_into(tensor: Tensor, array: Array) -> None:
    """tensor, contiguous, gets the array's numbers; as in to_device nobody waits."""
    source = torch.from_numpy(array)
    if tensor.is_cuda:
        staging = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        source = staging.copy_(source)
    tensor.copy_(source, non_blocking=True)


def _sizes(arrays: Sequence[Array]) -> list[int]:
    """Bytes of each in the joint buffer."""
    return [-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays]


def _pack(arrays: Sequence[Array], starts: Sequence[int], out: Array) -> None:
    for array, start in zip(arrays, starts, strict=False):
        flat = numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8)
        out[start : start + array.nbytes] = flat


def _unpack(arrays: Sequence[Array], starts: Sequence[int], packed: Tensor) -> list[Tensor]:
    return [
        packed[start : start + array.nbytes]
        .view(torch.from_numpy(array[:0]).dtype)
        .view(array.shape)
        for array, start in zip(arrays, starts, strict=False)
    ]
