"""Tensor maps: what the copy engine of sm_90 needs to know of a matrix in global memory."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

from torch import Tensor

_BYTES = 128
#: Activations come from few addresses: the allocator gives the same ones again.
_KEPT = 4096


def activation_map(x: Tensor, box: tuple[int, int]) -> Any:
    """The 128 bytes of a map of x (BF16 [rows, columns], contiguous) that a kernel takes by value.

    box: rows and columns that one copy brings, columns in the 128-byte swizzle; what lies beyond
    the matrix is read as zero.
    """
    return _encode(x.data_ptr(), *x.shape, *box)


@lru_cache(_KEPT)
def _encode(address: int, rows: int, columns: int, box_rows: int, box_columns: int) -> Any:
    from cuda.bindings import driver

    status, tensor_map = driver.cuTensorMapEncodeTiled(
        driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        2,
        address,
        [driver.cuuint64_t(columns), driver.cuuint64_t(rows)],
        [driver.cuuint64_t(columns * 2)],
        [driver.cuuint32_t(box_columns), driver.cuuint32_t(box_rows)],
        [driver.cuuint32_t(1), driver.cuuint32_t(1)],
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    if int(status) != 0:
        raise RuntimeError(f"no tensor map for {rows} x {columns} at {address:#x}: {status.name}")
    return (ctypes.c_byte * _BYTES).from_buffer_copy(ctypes.string_at(tensor_map.getPtr(), _BYTES))
