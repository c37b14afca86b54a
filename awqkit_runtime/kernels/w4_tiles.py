"""4-bit weights in the order in which tensor cores read them: "w4 tiles", for all CUDA kernels.

A weight [N, K] has its rows padded to a multiple of 16 with codes, zero points and scales of 0.

codes: tile (i, j) holds rows 16i … 16i+15 and inputs 64j … 64j+63 in 512 bytes, tiles of one i
    next to each other. In a tile, lane l of a warp (r = l // 4, c = l % 4) owns four consecutive
    words, word s for the inputs from 16s on. Nibbles p and p + 4 of a word are the low and the
    high half of register a_p of the A operand of mma.m16n8k16 (PTX ISA, "Matrix Fragments for
    mma.m16n8k16"): row r + 8 (p % 2), inputs 16s + 2c + 8 (p // 2) and the one after it.
params: for row tile i and group g of 128 inputs 16 words; word 2r is row r's, word 2r + 1 that of
    row r + 8. The low half of a word is the scale as FP16, the high half 128 + zero as BF16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit.checkpoint.quantized_weight import QuantizedWeight

#: Rows and inputs of a tile of codes, and the inputs of one tensor core instruction.
TILE_ROWS, TILE_INPUTS, STEP_INPUTS = 16, 64, 16
#: 32-bit words of a tile of codes, and of a row tile's parameters of one group.
CODE_WORDS, PARAM_WORDS = 128, 16
#: The scale and the zero point of a row and a group.
ROW_PARAM_BYTES = 4
#: 128 as a BF16 number; with the zero point in its low bits it is 128 + zero, exactly.
_BF16_128 = 0x4300


@dataclass(frozen=True, kw_only=True)
class W4Tiles:
    """One linear, or several that read the same input, one after the other.

    codes: int32 [row tiles, in/64, 32 lanes, 4].  params: int32 [row tiles, in/128, 8, 2].
    """

    codes: Tensor
    params: Tensor
    out_features: int

    @property
    def in_features(self) -> int:
        return self.codes.shape[1] * TILE_INPUTS

    @property
    def nbytes(self) -> int:
        """Bytes in memory, padding included."""
        return self.codes.nbytes + self.params.nbytes


def row_tiles(out_features: int) -> int:
    """Tiles that hold this many rows."""
    return -(-out_features // TILE_ROWS)


def empty_tiles(out_features: int, in_features: int, device: torch.device) -> W4Tiles:
    """Tiles of nothing but padding, to be filled."""
    tiles = row_tiles(out_features)
    codes = (tiles, in_features // TILE_INPUTS, 32, 4)
    params = (tiles, in_features // GROUP_SIZE, 8, 2)
    return W4Tiles(
        codes=torch.zeros(codes, dtype=torch.int32, device=device),
        params=torch.full(params, _BF16_128 << 16, dtype=torch.int32, device=device),
        out_features=out_features,
    )


def pack_tiles(weight: QuantizedWeight) -> W4Tiles:
    """The plain way to lay out a weight; w4_repack.py is the fast one."""
    rows = row_tiles(weight.out_features) * TILE_ROWS
    padding = (0, 0, 0, rows - weight.out_features)
    # A row is half·8 + r; an input 64j + 16s + 8·half + 2c + pair.
    axes = pad(weight.codes, padding).view(rows // 16, 2, 8, -1, 4, 2, 4, 2).to(torch.int32)
    tile, row_half, row, column, step, input_half, lane_column, pair = range(8)
    ordered = axes.permute(
        tile, column, row, lane_column, step, pair, input_half, row_half
    ).flatten(-3)
    words = (ordered << (4 * torch.arange(8, dtype=torch.int32))).sum(-1, dtype=torch.int32)
    codes = words.view(rows // 16, -1, 32, 4)

    scales = pad(weight.scales, padding).view(torch.int16).to(torch.int32) & 0xFFFF
    offsets = pad(weight.zeros, padding).to(torch.int32) | _BF16_128
    params = (offsets << 16 | scales).view(rows // 16, 2, 8, -1).permute(0, 3, 2, 1)
    return W4Tiles(codes=codes, params=params.contiguous(), out_features=weight.out_features)


def unpack_tiles(tiles: W4Tiles) -> QuantizedWeight:
    """The inverse of pack_tiles, on the tiles' device."""
    count = tiles.codes.shape[0]
    shifts = 4 * torch.arange(8, dtype=torch.int32, device=tiles.codes.device)
    nibbles = (tiles.codes.unsqueeze(-1) >> shifts & 0xF).to(torch.uint8)
    # tile, column, row, lane column, step, pair, input half, row half
    axes = nibbles.view(count, -1, 8, 4, 4, 2, 2, 2)
    codes = axes.permute(0, 7, 2, 1, 4, 6, 3, 5).reshape(count * TILE_ROWS, tiles.in_features)
    params = tiles.params.permute(0, 3, 2, 1).reshape(count * TILE_ROWS, -1)
    kept = slice(tiles.out_features)
    return QuantizedWeight(
        codes=codes[kept],
        scales=params.to(torch.int16).view(torch.float16)[kept],
        zeros=(params >> 16 & 0xF).to(torch.uint8)[kept],
    )


def unpack_rows(tiles: W4Tiles, rows: Tensor) -> QuantizedWeight:
    """Of `unpack_tiles` just these, without a look at the rows' values. rows: int64 [n]."""
    count = len(rows)
    tile, row_half, row = rows // TILE_ROWS, rows % TILE_ROWS // 8, rows % 8
    # Of each tile the four lanes of the row: row, column, lane column, step.
    words = tiles.codes.view(*tiles.codes.shape[:2], 8, 4, 4)[tile, :, row]
    # A nibble's place in its word: pair, input half, row half.
    places = 2 * torch.arange(4, device=rows.device) + row_half.unsqueeze(-1)
    shifts = (4 * places).to(torch.int32).view(count, 1, 1, 1, 4)
    nibbles = (words.unsqueeze(-1) >> shifts & 0xF).to(torch.uint8)
    axes = nibbles.view(count, -1, 4, 4, 2, 2)  # column, lane column, step, pair, input half
    codes = axes.permute(0, 1, 3, 5, 2, 4).reshape(count, tiles.in_features)
    params = tiles.params[tile, :, row, row_half]
    return QuantizedWeight(
        codes=codes,
        scales=params.to(torch.int16).view(torch.float16),
        zeros=(params >> 16 & 0xF).to(torch.uint8),
    )
