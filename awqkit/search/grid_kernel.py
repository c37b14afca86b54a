"""The arithmetic of grids as kernels on a GPU share it; the same as in affine."""

from __future__ import annotations

import triton
import triton.language as tl

from awqkit.checkpoint.layout import MAX_CODE
from awqkit.search.affine import LARGEST_SCALE, SMALLEST_SCALE

#: Adding and subtracting it rounds a float32 below 2²² to the nearest integer, ties to even.
_ROUNDER = tl.constexpr(12582912.0)
_LAST = tl.constexpr(float(MAX_CODE))
_SMALLEST = tl.constexpr(SMALLEST_SCALE)
_LARGEST = tl.constexpr(LARGEST_SCALE)


@triton.jit
def storable(scale):  # type: ignore[no-untyped-def]
    """affine.storable."""
    scale = tl.minimum(tl.maximum(scale, _SMALLEST), _LARGEST)
    scale = scale.to(tl.bfloat16).to(tl.float32).to(tl.float16).to(tl.float32)
    return tl.maximum(scale, _SMALLEST)


@triton.jit
def grid_for_range(low, high):  # type: ignore[no-untyped-def]
    """affine.grid_for_range: scale and zero point [rows]."""
    low, high = tl.minimum(low, 0.0), tl.maximum(high, 0.0)
    width = high - low
    scale = storable(tl.where(width > 0, tl.div_rn(width, _LAST), 1.0))
    zero = tl.minimum(tl.div_rn(-low, scale), _LAST)
    return scale, (zero + _ROUNDER) - _ROUNDER


@triton.jit
def nearest_codes(weight, scale, zero):  # type: ignore[no-untyped-def]
    """affine.nearest_codes but for ties: of weights [rows, columns] on grids [rows]."""
    code = weight * tl.div_rn(1.0, scale)[:, None] + zero[:, None]
    code = tl.minimum(tl.maximum(code, 0.0), _LAST)
    return (code + _ROUNDER) - _ROUNDER


@triton.jit
def rounding_error(weight, scale, zero):  # type: ignore[no-untyped-def]
    """The nearest levels minus the weights, [rows, columns]."""
    return (nearest_codes(weight, scale, zero) - zero[:, None]) * scale[:, None] - weight
