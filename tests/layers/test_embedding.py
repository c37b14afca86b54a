"""Rows looked up in a quantized matrix, and the head that the same matrix is."""

from __future__ import annotations

import pytest
import torch

from awqkit.checkpoint import pack_weight
from awqkit_runtime.kernels.packed_w4 import pack_w4
from awqkit_runtime.kernels.packed_w4 import unpack_rows as unpack_cpu_rows
from awqkit_runtime.kernels.w4_tiles import pack_tiles
from awqkit_runtime.kernels.w4_tiles import unpack_rows as unpack_tile_rows
from awqkit_runtime.layers import embedding as embedding_module
from awqkit_runtime.layers import wide_linear as wide_linear_module
from awqkit_runtime.layers.embedding import QuantizedEmbedding, build_ends
from awqkit_runtime.layers.linear import DequantizingLinear, PackedLinear
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.layers.quantized_table import QuantizedTable, table_bytes
from awqkit_runtime.layers.wide_linear import WideLinear, panel_bytes
from tests.checkpoint.folders import equal, random_codes

CPU = Placement(device=torch.device("cpu"), dtype=torch.float32)
#: 40 rows leave the last block of 16 half empty.
VOCAB, HIDDEN = 40, 256
IDS = torch.tensor([39, 0, 8, 15, 16, 7, 7, 31, 24])


def test_rows_of_the_layouts_that_kernels_read() -> None:
    weight = random_codes(VOCAB, HIDDEN, seed=0)
    assert equal(unpack_cpu_rows(pack_w4(weight), IDS), weight.select(IDS))
    assert equal(unpack_tile_rows(pack_tiles(weight), IDS), weight.select(IDS))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_table_gives_back_its_rows(bits: int) -> None:
    weight = random_codes(VOCAB, HIDDEN, seed=0, bits=bits)
    table = QuantizedTable(weight, CPU)
    assert equal(table.rows(IDS), weight.select(IDS))
    assert equal(table.rows(slice(3, 9)), weight.select(slice(3, 9)))
    kept = sum(buffer.nbytes for buffer in table.buffers())
    assert kept == table_bytes(VOCAB, HIDDEN, bits)


@pytest.mark.parametrize("ids", [IDS, IDS[:1], IDS[:0]])
@pytest.mark.parametrize("at_once", [1, 3 * HIDDEN, 2**22])
def test_any_number_of_tokens_is_looked_up(ids, at_once: int, monkeypatch) -> None:
    monkeypatch.setattr(embedding_module, "_ELEMENTS_AT_ONCE", at_once)
    weight = random_codes(VOCAB, HIDDEN, seed=0, bits=8)
    found = QuantizedEmbedding(QuantizedTable(weight, CPU), HIDDEN, CPU)(ids)
    assert torch.equal(found, weight.dequantize()[ids])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("bits", "kind"), [(4, PackedLinear), (8, WideLinear)])
def test_one_matrix_is_in_memory_once(bits: int, kind: type, packed: bool) -> None:
    weight = random_codes(VOCAB, HIDDEN, seed=0, bits=bits)
    embedding, head = build_ends(pack_weight(weight) if packed else weight, None, CPU)
    assert isinstance(head, kind) and embedding.source is head
    x = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(embedding(IDS), weight.dequantize()[IDS])
    torch.testing.assert_close(head(x), x @ weight.dequantize().T, rtol=1e-4, atol=1e-4)


def test_two_matrices_are_each_their_own() -> None:
    first, second = (random_codes(VOCAB, HIDDEN, seed=b, bits=b) for b in (4, 8))
    embedding, head = build_ends(first, second, CPU)
    x = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(embedding(IDS), first.dequantize()[IDS])
    torch.testing.assert_close(head(x), x @ second.dequantize().T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("panel_rows", [1, 7, 40])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_wide_linear_is_exact_panel_by_panel(panel_rows, has_bias, monkeypatch) -> None:
    monkeypatch.setattr(wide_linear_module, "_CPU_ELEMENTS", panel_rows * HIDDEN)
    weight = random_codes(VOCAB, HIDDEN, seed=0, bits=8)
    bias = torch.arange(VOCAB, dtype=torch.float32) if has_bias else None
    x = torch.randn(2, 3, HIDDEN, generator=torch.Generator().manual_seed(1))
    expected = x.double() @ weight.dequantize().double().T
    if bias is not None:
        expected += bias
    found = WideLinear(weight, bias, CPU)(x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert panel_bytes(VOCAB, HIDDEN, CPU) == 0


def test_rows_of_a_linear_without_a_kernel() -> None:
    weight = random_codes(VOCAB, HIDDEN, seed=0)
    assert equal(DequantizingLinear(weight, None, CPU).rows(IDS), weight.select(IDS))


def test_a_wide_linear_narrows_its_panels_into_memory_that_it_keeps(monkeypatch) -> None:
    """As on a GPU: the panels are the module's own, and products are in the narrow dtype."""
    monkeypatch.setattr(wide_linear_module, "_CPU_ELEMENTS", 7 * HIDDEN)
    weight = random_codes(VOCAB, HIDDEN, seed=0, bits=8)
    linear = WideLinear(weight, None, CPU)
    linear.unpacked = torch.empty(7, HIDDEN)
    linear.narrowed = torch.empty(7, HIDDEN, dtype=torch.bfloat16)
    x = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = x @ weight.dequantize(torch.bfloat16).T
    assert linear(x).dtype == torch.bfloat16
    torch.testing.assert_close(linear(x), expected, rtol=0.02, atol=0.5)
    gpu = Placement(device=torch.device("cuda"), dtype=torch.bfloat16)
    assert panel_bytes(VOCAB, HIDDEN, gpu) == VOCAB * HIDDEN * (4 + 2)
