"""The two 4-bit formats: which tensors a quantized linear is stored as, and how codes are packed.

Both hold the same integers, so that one converts into the other without loss:

`awq` ("gemm" of AutoAWQ), for a weight [out, in]:
    qweight int32 [in, out/8]   qzeros int32 [in/128, out/8]   scales float16 [in/128, out]
`compressed-tensors` ("pack-quantized"):
    weight_packed int32 [out, in/8]   weight_scale float16 [out, in/128]
    weight_zero_point int32 [out/8, in/128]   weight_shape int64 [2] = (out, in)
    and with 8 bits, which it alone can hold, [out, in/4] and [out/4, in/128].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from awqkit.checkpoint.layout import (
    AWQ_ORDER,
    BITS,
    CODES_PER_WORD,
    GROUP_SIZE,
    MAX_CODE,
    SEQUENTIAL_ORDER,
    WIDE_BITS,
    codes_per_word,
)
from awqkit.checkpoint.quantized_weight import QuantizedWeight

PackedFormat = Literal["awq", "compressed-tensors"]
#: What is read, besides: see checkpoint.gptq.
StoredFormat = Literal["awq", "compressed-tensors", "gptq"]
PACKED_FORMATS: tuple[PackedFormat, ...] = ("awq", "compressed-tensors")
#: The tensor that tells a quantized linear from a dense one, by format.
CODES_SUFFIX: dict[str, str] = {
    "awq": "qweight",
    "compressed-tensors": "weight_packed",
    "gptq": "qweight",
}
BYTES_PER_WORD = 4


def packed_shapes(
    packed_format: StoredFormat, out_features: int, in_features: int, *, bits: int = BITS
) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that hold a quantized linear [out, in], by suffix.

    Only `compressed-tensors` has others than 4 bits.
    """
    groups = in_features // GROUP_SIZE
    if packed_format == "awq":
        words = out_features // CODES_PER_WORD
        return {
            "qweight": (in_features, words),
            "qzeros": (groups, words),
            "scales": (groups, out_features),
        }
    if packed_format == "gptq":
        return {
            "qweight": (in_features // CODES_PER_WORD, out_features),
            "qzeros": (groups, out_features // CODES_PER_WORD),
            "scales": (groups, out_features),
            "g_idx": (in_features,),
        }
    return {
        "weight_packed": (out_features, in_features // codes_per_word(bits)),
        "weight_scale": (out_features, groups),
        "weight_zero_point": (out_features // codes_per_word(bits), groups),
        "weight_shape": (2,),
    }


def pack(weight: QuantizedWeight, packed_format: PackedFormat) -> dict[str, Tensor]:
    """The tensors that hold a quantized linear, by suffix.

    The weight must fit the formats (layout.is_quantizable); ValueError for 8 bits in `awq`.
    """
    if packed_format == "awq":
        if weight.bits != BITS:
            raise ValueError(f"The awq form holds {BITS} bits, not {weight.bits}")
        return {
            "qweight": pack_words(weight.codes.T, AWQ_ORDER),
            "qzeros": pack_words(weight.zeros.T, AWQ_ORDER),
            "scales": weight.scales.T.contiguous(),
        }
    return {
        "weight_packed": _pack(weight.codes, weight.bits),
        "weight_scale": weight.scales.contiguous(),
        "weight_zero_point": _pack(weight.zeros.T, weight.bits).T.contiguous(),
        "weight_shape": torch.tensor([weight.out_features, weight.in_features]),
    }


def unpack(
    tensors: Mapping[str, Tensor], packed_format: PackedFormat, *, bits: int = BITS
) -> QuantizedWeight:
    """The inverse of `pack`. Without zero points every zero is the middle code.

    Scales must be float16 already.
    """
    if packed_format == "awq":
        return QuantizedWeight(
            codes=unpack_words(tensors["qweight"], AWQ_ORDER).T.contiguous(),
            scales=tensors["scales"].T.contiguous(),
            zeros=unpack_words(tensors["qzeros"], AWQ_ORDER).T.contiguous(),
        )
    scales = tensors["weight_scale"]
    if "weight_zero_point" in tensors:
        packed_zeros = tensors["weight_zero_point"].T.contiguous()
        zeros = _unpack(packed_zeros, bits).T.contiguous()
    else:
        zeros = torch.full_like(scales, 2 ** (bits - 1), dtype=torch.uint8)
    codes = _unpack(tensors["weight_packed"], bits)
    return QuantizedWeight(codes=codes, scales=scales, zeros=zeros, bits=bits)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [rows, n·per word] → int32 words [rows, n], the first code in the lowest bits."""
    if bits == WIDE_BITS:
        # Flat first: the strides of a single row may be anything.
        return codes.flatten().view(torch.int32).view(len(codes), -1)
    return pack_words(codes, SEQUENTIAL_ORDER)


def _unpack(words: Tensor, bits: int) -> Tensor:
    """The inverse of `_pack`."""
    if bits == WIDE_BITS:
        return words.flatten().view(torch.uint8).view(len(words), -1)
    return unpack_words(words, SEQUENTIAL_ORDER)


def pack_words(codes: Tensor, order: Sequence[int]) -> Tensor:
    """uint8 codes [rows, 8·n] → int32 words [rows, n]: nibble i of word c is code 8c + order[i]."""
    rows = codes.shape[0]
    nibbles = codes.reshape(rows, -1, CODES_PER_WORD)
    # Byte by byte (little-endian) in uint8, which is many times faster than shifting int32 words.
    size = (rows, nibbles.shape[1], BYTES_PER_WORD)
    packed = torch.empty(size, dtype=torch.uint8, device=codes.device)
    for byte in range(BYTES_PER_WORD):
        low, high = order[2 * byte], order[2 * byte + 1]
        packed[:, :, byte] = nibbles[:, :, low] | (nibbles[:, :, high] << BITS)
    return packed.view(torch.int32).squeeze(-1)


def unpack_words(words: Tensor, order: Sequence[int]) -> Tensor:
    """int32 words [rows, n] → uint8 codes [rows, 8·n], the inverse of pack_words."""
    rows, count = words.shape
    packed = words.contiguous().view(torch.uint8).view(rows, count, BYTES_PER_WORD)
    size = (rows, count, CODES_PER_WORD)
    codes = torch.empty(size, dtype=torch.uint8, device=words.device)
    for byte in range(BYTES_PER_WORD):
        codes[:, :, order[2 * byte]] = packed[:, :, byte] & MAX_CODE
        codes[:, :, order[2 * byte + 1]] = packed[:, :, byte] >> BITS
    return codes.view(rows, -1)
