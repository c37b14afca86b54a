"""A checkpoint's packed tensors into w4 tiles, on the GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from awqkit.checkpoint import PackedWeight
from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.w4_tiles import TILE_INPUTS, TILE_ROWS, W4Tiles, empty_tiles

PROGRAM = Program(stem="w4_repack")
#: Row tiles of one block, a warp for each.
_BLOCK_TILES = 8


class _Source(ctypes.Structure):
    """A struct of csrc/cuda/w4_repack.cu."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("stored_rows", ctypes.c_int32),
        ("k", ctypes.c_int32),
    )


def repack(linears: Sequence[PackedWeight], device: torch.device) -> W4Tiles:
    """Linears that read the same input as one: the rows of each after those of the one before.

    One linear at a time is on the device in its stored form. device: CUDA, with its index.
    """
    out_features = sum(linear.out_features for linear in linears)
    tiles = empty_tiles(out_features, linears[0].in_features, device)
    first_row = 0
    for linear in linears:
        _repack_one(linear.to(device), tiles, first_row)
        first_row += linear.out_features
    return tiles


def _repack_one(linear: PackedWeight, tiles: W4Tiles, first_row: int) -> None:
    tensors = linear.tensors
    names = {
        "awq": ("qweight", "qzeros", "scales"),
        "compressed-tensors": ("weight_packed", "weight_zero_point", "weight_scale"),
    }[linear.packed_format]
    codes, zeros, scales = (tensors[n].contiguous() if n in tensors else None for n in names)
    assert codes is not None and scales is not None
    source = _Source(
        codes.data_ptr(),
        None if zeros is None else zeros.data_ptr(),
        scales.data_ptr(),
        *linear.stored_shape,
    )
    rows = None if linear.rows is None else linear.rows.to(torch.int32)
    count = linear.out_features
    touched = -(-(first_row % TILE_ROWS + count) // TILE_ROWS)
    shape = LaunchShape(
        grid=(-(-touched // _BLOCK_TILES), linear.in_features // TILE_INPUTS, 1),
        block=(32 * _BLOCK_TILES, 1, 1),
    )
    entry = "repack_" + linear.packed_format.replace("-", "_")
    launched = kernel(PROGRAM, entry, tiles.codes.device)
    launched.launch(shape, (source, rows, tiles.codes, tiles.params, first_row, count))
