"""Bytes that a decoder's weights take once they are loaded, from its config alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

from awqkit.checkpoint import DecoderConfig
from awqkit.checkpoint.canonical import (
    EMBEDDING,
    LM_HEAD,
    canonical_shapes,
    layer_prefix,
    mlp_modules,
)
from awqkit.checkpoint.layout import BITS, GROUP_SIZE, WIDE_BITS, is_quantizable
from awqkit_runtime.kernels.packed_w4 import BLOCK_ROWS, GROUP_PARAM_BYTES
from awqkit_runtime.kernels.w4_tiles import ROW_PARAM_BYTES, TILE_ROWS, row_tiles
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.layers.quantized_table import table_bytes
from awqkit_runtime.layers.wide_linear import panel_bytes

#: By the canonical name of a matrix the bits of its codes; None where it is dense.
BitsOf = Callable[[str], int | None]


def loaded_bytes(config: DecoderConfig, bits_of: BitsOf, placement: Placement) -> int:
    """Bytes of all weights in memory."""
    shapes = canonical_shapes(config)
    total = 0
    for layer in range(config.num_layers):
        for site in joint_linears(config, layer):
            names = [f"{layer_prefix(layer)}{name}.weight" for name in site]
            for bits, run in groupby(names, bits_of):
                linears = [shapes.pop(name) for name in run]
                rows, columns = sum(shape[0] for shape in linears), linears[0][1]
                total += _linear_bytes(rows, columns, placement, bits)
    total += embedding_bytes(config, bits_of, placement)
    for name, shape in shapes.items():
        if len(shape) == 1:
            total += shape[0] * placement.activation_dtype.itemsize
        elif name != EMBEDDING:
            bits = bits_of(name) if name == LM_HEAD else None
            total += _linear_bytes(shape[0], shape[1], placement, bits)
    return total


def embedding_bytes(config: DecoderConfig, bits_of: BitsOf, placement: Placement) -> int:
    """Of the embedding, and of the head where one matrix is both, as layers.embedding has it."""
    bits = bits_of(EMBEDDING)
    if bits is None or config.tie_word_embeddings:
        return _linear_bytes(config.vocab_size, config.hidden_size, placement, bits)
    return table_bytes(config.vocab_size, config.hidden_size, bits)


def packable(config: DecoderConfig) -> BitsOf:
    """After quantization: every linear of a layer that groups divide evenly has 4 bits."""
    shapes = canonical_shapes(config)

    def bits_of(name: str) -> int | None:
        rows, columns = shapes[name]
        return BITS if name.endswith("_proj.weight") and is_quantizable(rows, columns) else None

    return bits_of


def joint_linears(config: DecoderConfig, layer: int) -> Iterator[tuple[str, ...]]:
    """Linears that are loaded as one matrix where they are of one kind, as models.decoder does."""
    yield tuple(f"self_attn.{part}_proj" for part in "qkv")
    yield ("self_attn.o_proj",)
    for module in mlp_modules(config, layer):
        yield (f"{module}.gate_proj", f"{module}.up_proj")
        yield (f"{module}.down_proj",)


def _linear_bytes(rows: int, columns: int, placement: Placement, bits: int | None) -> int:
    if bits is None:
        return rows * columns * placement.dtype.itemsize
    if bits == WIDE_BITS:
        return table_bytes(rows, columns, bits) + panel_bytes(rows, columns, placement)
    param_bytes = GROUP_PARAM_BYTES // BLOCK_ROWS
    if placement.device.type == "cpu":
        rows = -(-rows // BLOCK_ROWS) * BLOCK_ROWS
    elif placement.uses_cuda_kernels:
        rows, param_bytes = row_tiles(rows) * TILE_ROWS, ROW_PARAM_BYTES
    return rows * columns // GROUP_SIZE * (GROUP_SIZE * BITS // 8 + param_bytes)
