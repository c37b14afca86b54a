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
    row_bytes = columns * matrix.element_size()
    return _encode(
        matrix.data_ptr(), matrix.dtype, (columns, rows), (row_bytes,), (box[1], box[0]), swizzled
    )


def blocked_tensor_map(
    matrix: Tensor, width: int, box: tuple[int, int], *, rows_first: bool, swizzled: bool
) -> Any:
    """A map of a contiguous matrix whose copies bring several blocks of `width` columns a row.

    box: rows and blocks that one copy brings. rows_first: a block of all rows lies before the next
    block, otherwise all blocks of a row before the next row. The rest as for tensor_map.
    """
    rows, columns = matrix.shape
    item = matrix.element_size()
    by_row, by_block = (rows, columns * item, box[0]), (columns // width, width * item, box[1])
    outer = (by_row, by_block) if rows_first else (by_block, by_row)
    sizes, strides, boxes = zip(*outer, strict=True)
    return _encode(
        matrix.data_ptr(), matrix.dtype, (width, *sizes), strides, (width, *boxes), swizzled
    )


@lru_cache(_KEPT)
def _encode(
    address: int,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    box: tuple[int, ...],
    swizzled: bool,
) -> Any:
    """sizes, strides, box: the innermost first; strides in bytes, of all but the innermost."""
    from cuda.bindings import driver

    types = driver.CUtensorMapDataType
    data_type = {
        torch.bfloat16: types.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        torch.int32: types.CU_TENSOR_MAP_DATA_TYPE_UINT32,
    }[dtype]
    swizzles = driver.CUtensorMapSwizzle
    status, encoded = driver.cuTensorMapEncodeTiled(
        data_type,
        len(sizes),
        address,
        [driver.cuuint64_t(size) for size in sizes],
        [driver.cuuint64_t(stride) for stride in strides],
        [driver.cuuint32_t(count) for count in box],
        [driver.cuuint32_t(1)] * len(sizes),
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        swizzles.CU_TENSOR_MAP_SWIZZLE_128B if swizzled else swizzles.CU_TENSOR_MAP_SWIZZLE_NONE,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    if int(status) != 0:
        raise RuntimeError(f"no tensor map of {sizes} at {address:#x}: {status.name}")
    return (ctypes.c_byte * _BYTES).from_buffer_copy(ctypes.string_at(encoded.getPtr(), _BYTES))
