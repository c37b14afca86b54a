"""Arrays of several types share one buffer on their way to a device."""

from __future__ import annotations

from itertools import accumulate

import numpy
import torch

from awqkit_runtime.engine.host_arrays import (
    _pack,
    _sizes,
    _unpack,
    host_buffer,
    to_device,
    to_host,
)

ARRAYS = [
    numpy.arange(5, dtype=numpy.int64),
    numpy.array([[1.5], [2.5], [numpy.inf]], dtype=numpy.float32),
    numpy.zeros((0, 1), dtype=numpy.float64),
    numpy.arange(6, dtype=numpy.int32).reshape(2, 3).T,
    numpy.array([[0.25]], dtype=numpy.float64),
]
DTYPES = [torch.int64, torch.float32, torch.float64, torch.int32, torch.float64]


@torch.inference_mode()
def test_a_joint_buffer_gives_every_array_back() -> None:
    starts = [0, *accumulate(_sizes(ARRAYS))]
    staging = torch.full((starts[-1],), 255, dtype=torch.uint8)
    _pack(ARRAYS, starts, staging.numpy())
    found = _unpack(ARRAYS, starts, staging)
    assert [tensor.dtype for tensor in found] == DTYPES
    for tensor, array in zip(found, ARRAYS, strict=True):
        assert numpy.array_equal(tensor.numpy(), array) and tensor.shape == array.shape


def test_on_a_cpu_nothing_is_joined() -> None:
    whole = [array for array in ARRAYS if array.flags.c_contiguous]
    for tensor, array in zip(to_device(whole, torch.device("cpu")), whole, strict=True):
        assert numpy.array_equal(tensor.numpy(), array)
    there = torch.arange(3)
    assert to_host(there) is there
    buffer = host_buffer((2, 3), torch.int64, torch.device("cpu"))
    assert buffer.shape == (2, 3) and buffer.dtype == torch.int64
