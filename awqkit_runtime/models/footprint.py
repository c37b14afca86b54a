"""Bytes that a decoder's weights take once they are loaded, from its config alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

from awqkit.checkpoint import DecoderConfig
from awqkit.checkpoint.canonical import LM_HEAD, canonical_shapes, layer_prefix, mlp_modules
from awqkit.checkpoint.layout import BITS, GROUP_SIZE, is_quantizable
from awqkit_runtime.kernels.packed_w4 import BLOCK_ROWS, GROUP_PARAM_BYTES
from awqkit_runtime.kernels.w4_tiles import ROW_PARAM_BYTES, TILE_ROWS, row_tiles
from awqkit_runtime.layers.placement import Placement


def loaded_bytes(
    config: DecoderConfig, is_packed: Callable[[str], bool], placement: Placement
) -> int:
    """Bytes of all weights in memory. is_packed: whether the linear of this name is kept 4-bit."""
    shapes = canonical_shapes(config)
    total = 0
    for layer in range(config.num_layers):
        for site in joint_linears(config, layer):
            names = [f"{layer_prefix(layer)}{name}.weight" for name in site]
            for packed, run in groupby(names, is_packed):
                linears = [shapes.pop(name) for name in run]
                rows, columns = sum(shape[0] for shape in linears), linears[0][1]
                total += _matrix_bytes(rows, columns, placement, packed=packed)
    for name, shape in shapes.items():
        if len(shape) == 1:
            total += shape[0] * placement.activation_dtype.itemsize
        else:
            packed = name == LM_HEAD and is_packed(name)
            total += _matrix_bytes(shape[0], shape[1], placement, packed=packed)
    return total


def packable(config: DecoderConfig) -> Callable[[str], bool]:
    """is_packed after quantization: every linear of a layer that groups divide evenly."""
    shapes = canonical_shapes(config)

    def is_packed(name: str) -> bool:
        rows, columns = shapes[name]
        return name.endswith("_proj.weight") and is_quantizable(rows, columns)

    return is_packed


def joint_linears(config: DecoderConfig, layer: int) -> Iterator[tuple[str, ...]]:
    """Linears that are loaded as one matrix where they are of one kind, as models.decoder does."""
    yield tuple(f"self_attn.{part}_proj" for part in "qkv")
    yield ("self_attn.o_proj",)
    for module in mlp_modules(config, layer):
        yield (f"{module}.gate_proj", f"{module}.up_proj")
        yield (f"{module}.down_proj",)


def _matrix_bytes(rows: int, columns: int, placement: Placement, *, packed: bool) -> int:
    if not packed:
        return rows * columns * placement.dtype.itemsize
    param_bytes = GROUP_PARAM_BYTES // BLOCK_ROWS
    if placement.device.type == "cpu":
        rows = -(-rows // BLOCK_ROWS) * BLOCK_ROWS
    elif placement.uses_cuda_kernels:
        rows, param_bytes = row_tiles(rows) * TILE_ROWS, ROW_PARAM_BYTES
    return rows * columns // GROUP_SIZE * (GROUP_SIZE * BITS // 8 + param_bytes)
