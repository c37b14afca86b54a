"""Small arrays between the host and a device, in copies that nobody waits for."""

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
    staging = host_buffer((starts[-1],), torch.uint8, device)
    _pack(arrays, starts, staging.numpy())
    packed = staging.to(device, non_blocking=True)
    return _unpack(arrays, starts, packed)


def to_host(tensor: Tensor) -> Tensor:
    """The tensor in the host's memory, once the current stream is past this point."""
    if not tensor.is_cuda:
        return tensor
    return host_buffer(tuple(tensor.shape), tensor.dtype, tensor.device).copy_(
        tensor, non_blocking=True
    )


def host_buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of the host, not initialised, that a copy to or from the device need not wait for.

    For a GPU it is pinned, and torch gives it to nobody else before such a copy is done.
    """
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


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
