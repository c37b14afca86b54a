"""4-bit weights in the layout that the CPU kernels read; csrc/cpu/w4_linear.h describes it too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from awqkit.checkpoint.layout import CODES_PER_WORD
from awqkit.checkpoint.quantized_weight import QuantizedWeight

#: Output rows whose codes lie interleaved, one 32-bit word each.
BLOCK_ROWS = 16
#: For each block and group: BLOCK_ROWS scales (float16), then BLOCK_ROWS zeros (uint8).
GROUP_PARAM_BYTES = BLOCK_ROWS * 2 + BLOCK_ROWS


@dataclass(frozen=True, kw_only=True)
class PackedW4:
    """One linear, ready for `w4_linear`. Rows are padded to whole blocks with zero scales.

    codes: int32 [blocks, in/8, 16]; nibble i of a word is the code of input 8j + AWQ_ORDER[i].
    group_params: uint8 [blocks, in/128, 48].
    """

    codes: Tensor
    group_params: Tensor
    out_features: int
    in_features: int

    @property
    def nbytes(self) -> int:
        """Bytes in memory, padding included."""
        return self.codes.nbytes + self.group_params.nbytes


def pack_w4(weight: QuantizedWeight) -> PackedW4:
    """Repack one linear for the CPU; its in_features is a multiple of 128."""
    padding = -weight.out_features % BLOCK_ROWS
    blocks = (weight.out_features + padding) // BLOCK_ROWS
    words = pad(_words(weight.codes), (0, 0, 0, padding))
    words = words.view(blocks, BLOCK_ROWS, -1).transpose(1, 2).contiguous()

    by_group = (blocks, BLOCK_ROWS, -1)
    scales = pad(weight.scales, (0, 0, 0, padding)).view(by_group).transpose(1, 2).contiguous()
    zeros = pad(weight.zeros, (0, 0, 0, padding)).view(by_group).transpose(1, 2)
    return PackedW4(
        codes=words,
        group_params=torch.cat([scales.view(torch.uint8), zeros], dim=-1),
        out_features=weight.out_features,
        in_features=weight.in_features,
    )


def _words(codes: Tensor) -> Tensor:
    """uint8 [out, in] -> int32 [out, in/8], nibble i of a word from input 8j + AWQ_ORDER[i].

    Eight codes are read as one 64-bit number, whose even and odd bytes are squeezed together.
    """
    octets = codes.contiguous().view(torch.int64)
    return (_squeeze(octets) | _squeeze(octets >> 8) << 16).to(torch.int32)


def _squeeze(octets: Tensor) -> Tensor:
    """The low nibbles of bytes 0, 2, 4 and 6 as one 16-bit number."""
    nibbles = octets & 0x000F000F000F000F
    nibbles |= nibbles >> 12
    nibbles &= 0x000000FF000000FF
    nibbles |= nibbles >> 24
    nibbles &= 0xFFFF
    return nibbles


def unpack_w4(packed: PackedW4) -> QuantizedWeight:
    """The inverse of `pack_w4`."""
    words = packed.codes.transpose(1, 2).reshape(-1, packed.in_features // CODES_PER_WORD)
    codes = _codes(words)
    rows = codes.shape[0]
    scale_bytes, zeros = packed.group_params.split([BLOCK_ROWS * 2, BLOCK_ROWS], dim=-1)
    scales = scale_bytes.contiguous().view(torch.float16)
    kept = slice(packed.out_features)
    return QuantizedWeight(
        codes=codes[kept],
        scales=scales.transpose(1, 2).reshape(rows, -1)[kept],
        zeros=zeros.transpose(1, 2).reshape(rows, -1)[kept],
    )


def unpack_rows(packed: PackedW4, rows: Tensor) -> QuantizedWeight:
    """Of `unpack_w4` just these. rows: int64 [n]."""
    blocks, within = rows // BLOCK_ROWS, rows % BLOCK_ROWS
    params = packed.group_params[blocks]
    scale_bytes, zeros = params.split([BLOCK_ROWS * 2, BLOCK_ROWS], dim=-1)
    scales = scale_bytes.contiguous().view(torch.float16)
    place = within.view(-1, 1, 1).expand(-1, params.shape[1], 1)
    return QuantizedWeight(
        codes=_codes(packed.codes[blocks, :, within].contiguous()),
        scales=scales.gather(-1, place).squeeze(-1),
        zeros=zeros.gather(-1, place).squeeze(-1),
    )


def _codes(words: Tensor) -> Tensor:
    """The inverse of `_words`."""
    wide = words.to(torch.int64)
    return (_spread(wide) | _spread(wide >> 16) << 8).contiguous().view(torch.uint8)


def _spread(halves: Tensor) -> Tensor:
    """The inverse of `_squeeze`, of the low 16 bits."""
    nibbles = halves & 0xFFFF
    nibbles |= nibbles << 24
    nibbles &= 0x000000FF000000FF
    nibbles |= nibbles << 12
    nibbles &= 0x000F000F000F000F
    return nibbles
