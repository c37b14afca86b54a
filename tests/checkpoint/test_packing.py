from __future__ import annotations

import numpy as np
import pytest
import torch

from awqkit.checkpoint.packing import PACKED_FORMATS, PackedFormat, pack, packed_shapes, unpack
from tests.checkpoint.folders import equal, random_codes

SHAPES = [(8, 128), (48, 256), (136, 384)]


def nibble(words: np.ndarray, position: int) -> np.ndarray:
    return (words.view(np.uint32) >> np.uint32(4 * position)) & np.uint32(15)


def awq_by_description(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """[out, in] in float64. Word c of a row holds columns 8c … 8c+7; nibble i holds number
    [0, 2, 4, 6, 1, 3, 5, 7][i] of them."""
    qweight, qzeros, scales = (tensors[k].numpy() for k in ("qweight", "qzeros", "scales"))
    in_features, out_features = scales.shape[0] * 128, scales.shape[1]
    weight = np.zeros((out_features, in_features))
    for i, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
        codes, zeros = nibble(qweight, i), nibble(qzeros, i)
        for c in range(out_features // 8):
            o = 8 * c + column
            for row in range(in_features):
                g = row // 128
                step = float(codes[row, c]) - float(zeros[g, c])
                weight[o, row] = step * float(scales[g, o])
    return weight


def compressed_by_description(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """[out, in] in float64. Weights are packed along the input, zero points along the output, both
    as signed values plus 8, element j in bits 4j … 4j+3."""
    packed, scale, zero = (
        tensors[k].numpy() for k in ("weight_packed", "weight_scale", "weight_zero_point")
    )
    out_features, in_features = tensors["weight_shape"].tolist()
    weight = np.zeros((out_features, in_features))
    for o in range(out_features):
        for i in range(in_features):
            q = int(nibble(packed, i % 8)[o, i // 8]) - 8
            z = int(nibble(zero, o % 8)[o // 8, i // 128]) - 8
            weight[o, i] = (q - z) * float(scale[o, i // 128])
    return weight


def test_awq_means_what_its_description_says() -> None:
    quantized = random_codes(48, 256, seed=3)
    expected = quantized.dequantize(torch.float64).numpy()
    assert np.array_equal(awq_by_description(pack(quantized, "awq")), expected)


def test_compressed_tensors_means_what_its_description_says() -> None:
    quantized = random_codes(16, 128, seed=4)
    expected = quantized.dequantize(torch.float64).numpy()
    tensors = pack(quantized, "compressed-tensors")
    assert np.array_equal(compressed_by_description(tensors), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packed_format", PACKED_FORMATS)
def test_round_trip(packed_format: PackedFormat, shape: tuple[int, int]) -> None:
    quantized = random_codes(*shape, seed=sum(shape))
    tensors = pack(quantized, packed_format)
    assert {k: tuple(t.shape) for k, t in tensors.items()} == packed_shapes(packed_format, *shape)
    assert all(t.is_contiguous() for t in tensors.values())
    assert equal(unpack(tensors, packed_format), quantized)


def test_dtypes_on_disk() -> None:
    quantized = random_codes(8, 128, seed=0)
    awq = {k: t.dtype for k, t in pack(quantized, "awq").items()}
    assert awq == {"qweight": torch.int32, "qzeros": torch.int32, "scales": torch.float16}
    compressed = {k: t.dtype for k, t in pack(quantized, "compressed-tensors").items()}
    assert compressed == {
        "weight_packed": torch.int32,
        "weight_zero_point": torch.int32,
        "weight_scale": torch.float16,
        "weight_shape": torch.int64,
    }


def test_conversion_between_the_formats_is_lossless() -> None:
    quantized = random_codes(24, 256, seed=5)
    there = unpack(pack(quantized, "awq"), "awq")
    back = unpack(pack(there, "compressed-tensors"), "compressed-tensors")
    assert equal(back, quantized)


def test_symmetric_checkpoints_have_their_zero_in_the_middle() -> None:
    tensors = pack(random_codes(8, 256, seed=6), "compressed-tensors")
    del tensors["weight_zero_point"]
    assert torch.equal(
        unpack(tensors, "compressed-tensors").zeros, torch.full((8, 2), 8, dtype=torch.uint8)
    )


def test_equal_to_the_compressed_tensors_library() -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    quantized = random_codes(16, 256, seed=7)
    tensors = pack(quantized, "compressed-tensors")
    signed = quantized.codes.to(torch.int8) - 8
    assert torch.equal(helpers.pack_to_int32(signed, 4), tensors["weight_packed"])
    zeros = helpers.pack_to_int32(quantized.zeros.to(torch.int8) - 8, 4, packed_dim=0)
    assert torch.equal(zeros, tensors["weight_zero_point"])
