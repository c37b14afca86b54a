"""Writing to scattered slots and reading back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from awqkit_runtime.cache.page_codec import pack_codes, quantize_vectors
from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat
from awqkit_runtime.cache.pool import PagePool

LAYERS, HEADS, HEAD_DIM, PAGES = 2, 3, 16, 7
#: Bits of keys and values with the dtype around them, and the largest error on N(0, 1) vectors.
FORMATS = {
    "float32": (32, 32, torch.float32, 0.0),
    "bfloat16": (16, 16, torch.bfloat16, 0.02),
    "int8": (8, 8, torch.bfloat16, 0.03),
    "int4": (4, 4, torch.float32, 0.4),
    "k8v4": (8, 4, torch.float32, 0.4),
}


def make_pool(name: str) -> PagePool:
    k_bits, v_bits, dtype, _ = FORMATS[name]
    format = PageFormat(
        num_layers=LAYERS,
        num_kv_heads=HEADS,
        head_dim=HEAD_DIM,
        k_bits=k_bits,
        v_bits=v_bits,
        dtype=dtype,
    )
    pool = PagePool(format, PAGES, "cpu")
    # A pool starts with whatever the memory held.
    everywhere = torch.arange(PAGES * PAGE_TOKENS)
    blank = torch.zeros(len(everywhere), HEADS, HEAD_DIM)
    for layer in range(LAYERS):
        pool.append(layer, blank, blank, everywhere)
    return pool


def random_vectors(tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, tokens, HEADS, HEAD_DIM, generator=generator)
    return k, v


def random_slots(tokens: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(PAGES * PAGE_TOKENS, generator=generator)[:tokens]


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_stored_comes_back(name: str) -> None:
    pool = make_pool(name)
    k, v = random_vectors(100, seed=1)
    slots = random_slots(100, seed=2)
    pool.append(1, k, v, slots)
    stored_k, stored_v = pool.gather(1, slots)
    bound = FORMATS[name][3]
    assert (stored_k - k).abs().max() <= bound
    assert (stored_v - v).abs().max() <= bound
    other_layer, _ = pool.gather(0, slots)
    assert not other_layer.any()


def test_dense_vectors_come_as_a_cpu_computes_with_them() -> None:
    pool = make_pool("bfloat16")
    k, v = random_vectors(100, seed=1)
    slots = random_slots(100, seed=2)
    pool.append(0, k, v, slots)
    for stored, expected in zip(pool.gather(0, slots), (k, v), strict=True):
        assert stored.dtype == torch.float32
        assert torch.equal(stored, expected.bfloat16().float())


def test_keys_keep_more_bits_than_values_in_k8v4() -> None:
    pool = make_pool("k8v4")
    k, v = random_vectors(100, seed=1)
    slots = random_slots(100, seed=2)
    pool.append(0, k, v, slots)
    stored_k, stored_v = pool.gather(0, slots)
    assert (stored_k - k).abs().max() < 0.03 < (stored_v - v).abs().max()


@pytest.mark.parametrize("name", FORMATS)
def test_chunks_at_random_slots_equal_one_append(name: str) -> None:
    k, v = random_vectors(150, seed=3)
    slots = random_slots(150, seed=4)
    at_once, in_chunks = make_pool(name), make_pool(name)
    at_once.append(0, k, v, slots)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(5))
    for chunk in order.split([1, 1, 7, 40, 63, 38]):
        in_chunks.append(0, k[chunk], v[chunk], slots[chunk])
    everywhere = torch.arange(PAGES * PAGE_TOKENS)
    for expected, got in zip(
        at_once.gather(0, everywhere), in_chunks.gather(0, everywhere), strict=True
    ):
        assert torch.equal(expected, got)


@pytest.mark.parametrize("name", FORMATS)
def test_the_pool_allocates_what_the_format_says(name: str) -> None:
    pool = make_pool(name)
    layers = [pool.layer(number) for number in range(LAYERS)]
    stores = [store for layer in layers for store in (layer.keys, layer.values, layer.params)]
    assert sum(store.nbytes for store in stores if store is not None) == pool.nbytes
    assert pool.nbytes == PAGES * pool.format.bytes_per_page


@pytest.mark.parametrize("name", FORMATS)
def test_a_head_of_a_page_lies_in_one_piece(name: str) -> None:
    pool = make_pool(name)
    form = pool.format
    k, v = random_vectors(PAGE_TOKENS, seed=6)
    page = 3
    pool.append(1, k, v, torch.arange(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS))
    pages = pool.layer(1)
    for stored, vectors, vector in ((pages.keys, k, form.key), (pages.values, v, form.value)):
        assert stored.is_contiguous()
        expected = vectors.transpose(0, 1)
        if vector.quantized:
            expected = pack_codes(quantize_vectors(expected, vector.bits)[0], vector.bits)
        assert torch.equal(stored[page], expected.to(stored.dtype))
    if pages.params is None:
        assert not form.quantized
        return
    assert pages.params.is_contiguous()
    for params, vectors, vector in zip(
        pages.params[page].chunk(2), (k, v), (form.key, form.value), strict=True
    ):
        assert torch.equal(params, quantize_vectors(vectors.transpose(0, 1), vector.bits)[1])
