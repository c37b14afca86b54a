"""New tokens into the pages on CUDA: as the rotary kernel and the pool's own append do it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from awqkit_runtime.cache.key_frame import KeyFrame
from awqkit_runtime.cache.page_format import PAGE_TOKENS, LayerPages, PageFormat
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.kernels.decode_places import decode_places
from awqkit_runtime.kernels.page_gather import page_gather_
from awqkit_runtime.kernels.rotary import HeadNorms, rotary_
from awqkit_runtime.kernels.rotary_append import append_launch, can_append, rotary_append_
from tests.kernels.cuda_random import random_bf16, random_fp32

gpu = pytest.mark.gpu

QUERY_HEADS, KV_HEADS, PAGES = 6, 2, 4
#: Sizes of heads, and how much of them turns.
HEADS = ((64, 64), (96, 24), (128, 128), (128, 64), (256, 128), (256, 256))
#: Bits of keys and values.
BITS = ((16, 16), (8, 8), (4, 4), (8, 4))
#: Mean key, channel scales, rotation.
FRAMES = ((False, False, False), (True, False, False), (False, True, False), (True, True, True))
#: Share of codes and parameters that sums in another order may move by one step, …
MOVED = 1e-3
#: … and of numbers where a rotation hands on what became of one to all of its head.
MOVED_BY_ROTATION = 2e-2
#: 4 bits fit their parameters to the codes of a first try, of which one at a tie moves both. Share
#: of vectors to which that happens, without and with a rotation, …
PARTED, PARTED_BY_ROTATION = 1e-2, 5e-2
#: … and how much larger than the expected one their squared error may be: the fit is as good.
FITTED = 1.1


def page_format(head_dim: int, k_bits: int, v_bits: int) -> PageFormat:
    return PageFormat(
        num_layers=2,
        num_kv_heads=KV_HEADS,
        head_dim=head_dim,
        k_bits=k_bits,
        v_bits=v_bits,
        dtype=torch.bfloat16,
    )


def make_frame(head_dim: int, mean: bool, scaled: bool, rotated: bool) -> KeyFrame:
    shape = (2, KV_HEADS, head_dim)
    return KeyFrame(
        mean=2 * random_fp32(*shape, seed=1) if mean else None,
        channel_scale=random_fp32(*shape, seed=2).exp() if scaled else None,
        rotated=rotated,
    )


def make_pool(form: PageFormat, frame: KeyFrame, pages: int = PAGES) -> PagePool:
    """Of zeros, so that what was not written can be compared too."""
    pool = PagePool(form, pages, "cuda", key_frame=frame)
    for layer in range(form.num_layers):
        for store in stores(pool.layer(layer)):
            store.zero_()
    return pool


def stores(pages: LayerPages) -> list[Tensor]:
    return [x for x in (pages.keys, pages.values, pages.params) if x is not None]


def make_norms(head_dim: int) -> HeadNorms:
    query, key = (random_bf16(head_dim, seed=i) for i in (1, 2))
    return HeadNorms(query=query, key=key, eps=1e-6, unit_offset=False)


def assert_same_codes(found: Tensor, expected: Tensor, bits: int, moved: float) -> None:
    """Of bytes of codes; a few may differ by one step."""
    pairs = [(found, expected)]
    if bits == 4:
        pairs = [(found & 15, expected & 15), (found >> 4, expected >> 4)]
    steps = torch.stack([(left.int() - right.int()).abs() for left, right in pairs])
    assert int(steps.max()) <= 1
    assert float((steps > 0).double().mean()) <= moved


def assert_same_numbers(found: Tensor, expected: Tensor, moved: float) -> None:
    """Of BF16 or FP16: a few may be rounded the other way."""
    unit = torch.finfo(expected.dtype).eps
    error = (found.double() - expected.double()).abs()
    assert float(error.max()) <= unit * float(expected.double().abs().max())
    assert float((found != expected).double().mean()) <= moved


def assert_same_fits(found: Tensor, expected: Tensor, moved: float) -> None:
    """Of parameters [..., 2] of 4-bit vectors: all but a few vectors have the same, but for FP16's
    rounding."""
    unit = torch.finfo(expected.dtype).eps
    error = (found.double() - expected.double()).abs()
    tolerance = unit * float(expected.double().abs().max())
    parted = PARTED_BY_ROTATION if moved == MOVED_BY_ROTATION else PARTED
    assert float((error > tolerance).any(-1).double().mean()) <= parted
    assert float((found != expected).double().mean()) <= parted


def assert_fits_as_well(found: Tensor, expected: Tensor, vectors: Tensor) -> None:
    """Vectors [rows, heads, head_dim] as 4-bit pages give them back."""
    losses = [(read.double() - vectors.double()).square().sum(-1) for read in (found, expected)]
    assert bool((losses[0] <= FITTED * losses[1]).all())


def assert_same_pages(found: LayerPages, expected: LayerPages, moved: float = MOVED) -> None:
    form = expected.format
    for left, right, bits in (
        (found.keys, expected.keys, form.k_bits),
        (found.values, expected.values, form.v_bits),
    ):
        if bits == 16:
            assert_same_numbers(left, right, moved)
        else:
            assert_same_codes(left, right, bits, moved)
    if expected.params is not None and found.params is not None:
        pairs = (x.chunk(2, dim=1) for x in (found.params, expected.params))
        for bits, left, right in zip((form.k_bits, form.v_bits), *pairs, strict=True):
            (assert_same_fits if bits == 4 else assert_same_numbers)(left, right, moved)


@gpu
@pytest.mark.parametrize(("k_bits", "v_bits"), BITS)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), HEADS)
def test_equals_rotary_and_append(head_dim: int, rotary_dim: int, k_bits: int, v_bits: int) -> None:
    form = page_format(head_dim, k_bits, v_bits)
    assert can_append(form)
    heads = {"query_heads": QUERY_HEADS, "key_heads": KV_HEADS, "head_dim": head_dim}
    cases = itertools.product(FRAMES, ((None, 1), (make_norms(head_dim), 150)))
    for flags, (norms, rows) in cases:
        frame = make_frame(head_dim, *flags)
        qkv = random_bf16(rows, (QUERY_HEADS + 2 * KV_HEADS) * head_dim, seed=rows, scale=3.0)
        angles = random_fp32(rows, rotary_dim // 2, seed=rows).repeat(1, 2) * 10
        cos, sin = angles.cos(), angles.sin()
        slots = torch.randperm(PAGES * PAGE_TOKENS, device="cuda")[:rows]
        slots[3::7] = -1
        stored = slots >= 0

        turned = qkv.clone()
        rotary_(turned, cos, sin, norms=norms, **heads)
        q, k, v = turned.unflatten(1, (-1, head_dim)).split((QUERY_HEADS, KV_HEADS, KV_HEADS), 1)
        expected = make_pool(form, frame)
        expected.append(1, k[stored], v[stored], slots[stored])

        found = make_pool(form, frame)
        rotary_append_(
            *(qkv, cos, sin, found.layer(1), slots),
            query_heads=QUERY_HEADS,
            norms=norms,
            frame=frame.layer(1),
        )
        moved = MOVED_BY_ROTATION if frame.rotated else MOVED
        for layer in range(2):
            assert_same_pages(found.layer(layer), expected.layer(layer), moved)
        vectors = (frame.keys(1, k[stored]), v[stored])
        read = zip(*(pool.gather(1, slots[stored]) for pool in (found, expected)), strict=True)
        for bits, pair, wide in zip((k_bits, v_bits), read, vectors, strict=True):
            if bits == 4:
                assert_fits_as_well(*pair, wide)
        found_q, found_k, found_v = qkv.unflatten(1, (-1, head_dim)).split(
            (QUERY_HEADS, KV_HEADS, KV_HEADS), 1
        )
        assert_same_numbers(found_q, expected.queries(1, q), moved)
        assert torch.equal(found_v, v)
        if not form.quantized:
            assert torch.equal(found_k[stored], found.gather(1, slots[stored])[0])


@gpu
@pytest.mark.parametrize(("k_bits", "v_bits"), [(16, 16), (4, 4)])
def test_takes_many_rows(k_bits: int, v_bits: int) -> None:
    rows, head_dim = 8192, 128
    form = page_format(head_dim, k_bits, v_bits)
    qkv = random_bf16(rows, 2 * (QUERY_HEADS + 2 * KV_HEADS) * head_dim, seed=1)
    qkv = qkv[:, : (QUERY_HEADS + 2 * KV_HEADS) * head_dim]  # Rows of something wider.
    before = qkv.clone()
    angles = random_fp32(rows, head_dim // 2, seed=3).repeat(1, 2) * 10
    slots = torch.randperm(rows, device="cuda")
    found, expected = (make_pool(form, KeyFrame(), rows // PAGE_TOKENS) for _ in range(2))
    rotary_append_(
        *(qkv, angles.cos(), angles.sin(), found.layer(0), slots),
        query_heads=QUERY_HEADS,
        norms=None,
        frame=KeyFrame().layer(0),
    )
    heads = {"query_heads": QUERY_HEADS, "key_heads": KV_HEADS, "head_dim": head_dim}
    rotary_(before, angles.cos(), angles.sin(), **heads)
    assert torch.equal(qkv, before)
    _, k, v = before.unflatten(1, (-1, head_dim)).split((QUERY_HEADS, KV_HEADS, KV_HEADS), 1)
    expected.append(0, k, v, slots)
    assert_same_pages(found.layer(0), expected.layer(0))


@gpu
@pytest.mark.parametrize(("k_bits", "v_bits"), BITS)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_gathers_what_the_pages_hold(head_dim: int, k_bits: int, v_bits: int) -> None:
    pool = make_pool(page_format(head_dim, k_bits, v_bits), KeyFrame())
    slots = torch.arange(PAGES * PAGE_TOKENS, device="cuda")
    for layer in range(2):
        k, v = (random_bf16(len(slots), KV_HEADS, head_dim, seed=layer + i) for i in (0, 7))
        pool.append(layer, k, v, slots)
    page_ids = torch.tensor([3, 0, 2, 1], dtype=torch.int32, device="cuda")
    for first, count in ((0, 1), (37, 150), (64, 64), (200, 56)):
        positions = torch.arange(first, first + count, device="cuda")
        wanted = page_ids[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS
        shape = (count, KV_HEADS, head_dim)
        k, v = (torch.full(shape, torch.nan, device="cuda").bfloat16() for _ in range(2))
        page_gather_(pool.layer(1), page_ids, first, k, v)
        for found, expected in zip((k, v), pool.gather(1, wanted), strict=True):
            assert torch.equal(found, expected.bfloat16())


@gpu
def test_numbers_that_are_none_stay_so() -> None:
    """A NaN among a head's numbers must reach the logits, where it is noticed."""
    form = page_format(64, 8, 4)
    pool = make_pool(form, KeyFrame())
    qkv = random_bf16(1, (QUERY_HEADS + 2 * KV_HEADS) * 64, seed=1)
    qkv[0, QUERY_HEADS * 64 + 5] = torch.nan
    qkv[0, -1] = torch.inf
    angles = torch.zeros(1, 64, device="cuda")
    rotary_append_(
        *(qkv, angles.cos(), angles.sin(), pool.layer(0)),
        torch.zeros(1, dtype=torch.int64, device="cuda"),
        query_heads=QUERY_HEADS,
        norms=None,
        frame=KeyFrame().layer(0),
    )
    k, v = pool.gather(0, torch.zeros(1, dtype=torch.int64, device="cuda"))
    assert k[0, 0].isnan().all() and k[0, 1].isfinite().all()
    assert v.isfinite().all() and float(v.max()) > 6e4


@gpu
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, 3), (300, 9)])
def test_places_of_decodes(rows: int, width: int) -> None:
    generator = torch.Generator("cuda").manual_seed(rows)
    kwargs = {"generator": generator, "device": "cuda"}
    page_table = torch.randint(1000, (rows, width), dtype=torch.int32, **kwargs)
    positions = torch.randint(-1, width * PAGE_TOKENS, (rows,), **kwargs)
    slots, lengths = decode_places(page_table, positions)
    pages = page_table.long().gather(1, (positions.clamp(min=0) // PAGE_TOKENS).unsqueeze(1))
    expected = pages.squeeze(1) * PAGE_TOKENS + positions % PAGE_TOKENS
    assert torch.equal(slots, expected.where(positions >= 0, -1))
    assert torch.equal(lengths, (positions + 1).int())


def test_other_pages_are_left_to_torch() -> None:
    assert not can_append(page_format(80, 8, 8))
    whole = PageFormat(
        num_layers=1,
        num_kv_heads=1,
        head_dim=64,
        k_bits=32,
        v_bits=32,
        dtype=torch.float32,
    )
    assert not can_append(whole)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("heads", [(32, 8), (7, 1), (16, 16)])
def test_a_launch_has_a_warp_for_all_heads_of_all_rows(
    heads: tuple[int, int], head_dim: int
) -> None:
    query_heads, kv_heads = heads
    in_warp = {64: 4, 96: 2, 128: 2, 256: 1}[head_dim]
    for rows in (1, 3, 16, 200, 8192):
        shape, heads_a_group = append_launch(rows, query_heads, kv_heads, head_dim)
        kinds = (query_heads, kv_heads, kv_heads)
        units = sum(-(-count // (in_warp * heads_a_group)) for count in kinds)
        warps = shape.grid[0] * shape.block[0] // 32
        assert rows * units <= warps < rows * units + shape.block[0] // 32


def test_few_rows_spread_over_the_gpu_and_many_keep_their_angles() -> None:
    few, heads_of_few = append_launch(1, 32, 8, 128)
    many, heads_of_many = append_launch(8192, 32, 8, 128)
    assert (few.block[0], heads_of_few) == (32, 1)
    assert (many.block[0], heads_of_many) == (128, 4)


@gpu
@pytest.mark.parametrize(("k_bits", "v_bits"), BITS)
def test_a_row_has_the_same_bits_in_any_company(k_bits: int, v_bits: int) -> None:
    head_dim, rows, few = 128, 1200, 40
    launches = [append_launch(count, QUERY_HEADS, KV_HEADS, head_dim) for count in (few, rows)]
    assert launches[0][1] < launches[1][1]
    form = page_format(head_dim, k_bits, v_bits)
    frame = make_frame(head_dim, True, True, True)
    qkv = random_bf16(rows, (QUERY_HEADS + 2 * KV_HEADS) * head_dim, seed=5, scale=3.0)
    angles = random_fp32(rows, head_dim // 2, seed=6).repeat(1, 2) * 10
    cos, sin, slots = angles.cos(), angles.sin(), torch.arange(rows, device="cuda")
    together, alone = (make_pool(form, frame, 19) for _ in range(2))
    apart = qkv.clone()

    def append(pool: PagePool, numbers: Tensor, part: slice) -> None:
        rotary_append_(
            *(numbers[part], cos[part], sin[part], pool.layer(0), slots[part]),
            query_heads=QUERY_HEADS,
            norms=make_norms(head_dim),
            frame=frame.layer(0),
        )

    append(together, qkv, slice(None))
    for row in range(0, rows, few):
        append(alone, apart, slice(row, row + few))
    assert torch.equal(qkv, apart)
    for left, right in zip(stores(together.layer(0)), stores(alone.layer(0)), strict=True):
        assert torch.equal(left, right)
