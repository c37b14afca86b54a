"""Tensor maps: what the copy engine of sm_90 needs to know of a matrix in global memory."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_BYTES = 128
#: Weights have two maps each, and activations come from few addresses: the allocator gives the
#: same ones again.
_KEPT = 2**14


def tensor_map(matrix: Tensor, box: tuple[int, int], *, swizzled: bool) -> Any:
    """The 128 bytes of a map of a contiguous matrix that a kernel takes by value.

    matrix: [rows, columns], BF16 or int32. box: rows and columns that one copy brings, in the
    128-byte swizzle or as they are; what lies beyond the matrix is read as zero.
    """
    rows, columns = matrix.shape
    return _encode(matrix.data_ptr(), matrix.dtype, rows, columns, *box, swizzled)


@lru_cache(_KEPT)
def _encode(
    address: int,
    dtype: torch.dtype,
    rows: int,
    columns: int,
    box_rows: int,
    box_columns: int,
    swizzled: bool,
) -> Any:
    from cuda.bindings import driver

    types = driver.CUtensorMapDataType
    data_type = {
        torch.bfloat16: types.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        torch.int32: types.CU_TENSOR_MAP_DATA_TYPE_UINT32,
    }[dtype]
    swizzles = driver.CUtensorMapSwizzle
    status, encoded = driver.cuTensorMapEncodeTiled(
        data_type,
        2,
        address,
        [driver.cuuint64_t(columns), driver.cuuint64_t(rows)],
        [driver.cuuint64_t(columns * dtype.itemsize)],
        [driver.cuuint32_t(box_columns), driver.cuuint32_t(box_rows)],
        [driver.cuuint32_t(1), driver.cuuint32_t(1)],
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        swizzles.CU_TENSOR_MAP_SWIZZLE_128B if swizzled else swizzles.CU_TENSOR_MAP_SWIZZLE_NONE,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    if int(status) != 0:
        raise RuntimeError(f"no tensor map of {rows} x {columns} at {address:#x}: {status.name}")
    return (ctypes.c_byte * _BYTES).from_buffer_copy(ctypes.string_at(encoded.getPtr(), _BYTES))
