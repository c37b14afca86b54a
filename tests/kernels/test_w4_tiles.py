"""The tile layout: its definition word by word, the way back, and the kernel that writes it."""

from __future__ import annotations

import random

import pytest
import torch

from awqkit.checkpoint import PackedWeight, QuantizedWeight
from awqkit.checkpoint.packing import PACKED_FORMATS, PackedFormat, pack
from awqkit_runtime.kernels.w4_tiles import W4Tiles, pack_tiles, unpack_tiles
from tests.kernels.cuda_random import random_weight

SHAPES = [(16, 128), (8, 256), (40, 384), (264, 640)]


def same(a: QuantizedWeight, b: QuantizedWeight) -> bool:
    pairs = ((a.codes, b.codes), (a.scales, b.scales), (a.zeros, b.zeros))
    return all(torch.equal(first.cpu(), second.cpu()) for first, second in pairs)


def same_tiles(a: W4Tiles, b: W4Tiles) -> bool:
    pairs = ((a.codes, b.codes), (a.params, b.params))
    return a.out_features == b.out_features and all(
        torch.equal(first.cpu(), second.cpu()) for first, second in pairs
    )


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_packing_loses_nothing(rows: int, columns: int) -> None:
    weight = random_weight(rows, columns, seed=rows)
    assert same(unpack_tiles(pack_tiles(weight)), weight)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_words_are_what_the_layout_says(rows: int, columns: int) -> None:
    weight = random_weight(rows, columns, seed=1)
    tiles = pack_tiles(weight)
    assert tiles.nbytes == tiles.codes.shape[0] * 16 * (columns // 2 + columns // 128 * 4)
    dice = random.Random(rows)
    for _ in range(300):
        i, j = dice.randrange(tiles.codes.shape[0]), dice.randrange(columns // 64)
        lane, step, p, high = (dice.randrange(n) for n in (32, 4, 4, 2))
        row = 16 * i + lane // 4 + 8 * (p % 2)
        column = 64 * j + 16 * step + 2 * (lane % 4) + 8 * (p // 2) + high
        nibble = int(tiles.codes[i, j, lane, step]) >> 4 * (p + 4 * high) & 15
        word = int(tiles.params[i, column // 128, lane // 4, p % 2]) & 0xFFFFFFFF
        if row >= rows:
            assert nibble == 0 and word == 0x43000000
            continue
        scale = int(weight.scales.view(torch.int16)[row, column // 128]) & 0xFFFF
        assert nibble == weight.codes[row, column]
        assert word == (0x4300 + int(weight.zeros[row, column // 128])) << 16 | scale


@pytest.mark.gpu
@pytest.mark.parametrize("packed_format", PACKED_FORMATS)
@pytest.mark.parametrize("rows", [(16,), (8,), (40, 8, 24), (264, 72), (4096, 1024, 1024)])
def test_the_kernel_writes_the_same_tiles(
    packed_format: PackedFormat, rows: tuple[int, ...]
) -> None:
    from awqkit_runtime.kernels.w4_repack import repack

    columns = 384
    weights = [random_weight(count, columns, seed=count) for count in rows]
    packed = [
        PackedWeight(packed_format=packed_format, tensors=pack(weight, packed_format))
        for weight in weights
    ]
    expected = pack_tiles(stacked(weights))
    assert same_tiles(repack(packed, torch.device("cuda:0")), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("packed_format", PACKED_FORMATS)
def test_the_kernel_takes_rows_of_a_stored_linear(packed_format: PackedFormat) -> None:
    from awqkit_runtime.kernels.w4_repack import repack

    weight = random_weight(192, 256, seed=5)
    tensors = pack(weight, packed_format)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2)).repeat_interleave(8) * 8
    order += torch.arange(8).repeat(24)
    parts = [
        PackedWeight(packed_format=packed_format, tensors=tensors, rows=rows)
        for rows in order.split((96, 24, 72))
    ]
    expected = QuantizedWeight(
        codes=weight.codes[order], scales=weight.scales[order], zeros=weight.zeros[order]
    )
    tiles = repack(parts, torch.device("cuda:0"))
    assert same(unpack_tiles(tiles), expected)


@pytest.mark.gpu
def test_symmetric_weights_have_the_zero_point_in_the_middle() -> None:
    from awqkit_runtime.kernels.w4_repack import repack

    weight = random_weight(48, 256, seed=6)
    weight.zeros.fill_(8)
    tensors = pack(weight, "compressed-tensors")
    del tensors["weight_zero_point"]
    packed = PackedWeight(packed_format="compressed-tensors", tensors=tensors)
    assert same(unpack_tiles(repack([packed], torch.device("cuda:0"))), weight)


def stacked(weights: list[QuantizedWeight]) -> QuantizedWeight:
    return QuantizedWeight(
        codes=torch.cat([weight.codes for weight in weights]),
        scales=torch.cat([weight.scales for weight in weights]),
        zeros=torch.cat([weight.zeros for weight in weights]),
    )
