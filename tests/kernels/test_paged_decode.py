"""Attention over paged keys and values against float64, from the very numbers that pages hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from awqkit_runtime.cache.page_format import PAGE_TOKENS
from awqkit_runtime.kernels.cuda.compiler import compile_programs
from awqkit_runtime.kernels.cuda.launch import device_architecture
from awqkit_runtime.kernels.paged_decode import (
    DecodeRows,
    paged_decode,
    prepare_decode,
    share_rows,
)
from awqkit_runtime.kernels.paged_decode_instance import HEAD_DIMS, WIDTHS, all_instances
from awqkit_runtime.kernels.w4_tiled_linear import gpu_model
from tests.kernels.cuda_random import random_bf16
from tests.kernels.paged_rows import PagedRows, exact_attention, paged_rows
from tests.kernels.test_paged_decode_plan import page_format

pytestmark = pytest.mark.gpu

#: Relative Frobenius error. Rounding the output alone costs 1.7e-3, and the weights are BF16 too.
LIMIT = 4e-3
MIXED = [0, 1, 63, 64, 65, 1000, 0, 130, 17]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """All at once, several at a time."""
    device = torch.device("cuda", torch.cuda.current_device())
    programs = {instance.program for instance in all_instances(gpu_model(device))}
    compile_programs(programs, device_architecture(device))


@contextmanager
def poisoned() -> Iterator[None]:
    """New tensors start as NaN, so that an output nobody wrote cannot pass for a result."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def queries(rows: PagedRows, group: int, seed: int = 1, scale: float = 1.0) -> Tensor:
    form = rows.pool.format
    heads = form.num_kv_heads * group
    return random_bf16(len(rows.slots), heads, form.head_dim, seed=seed, scale=scale)


def shared(rows: PagedRows, heads: int, window: int | None = None) -> DecodeRows:
    return share_rows(rows.pool.format, heads, rows.page_table, rows.lengths, window=window)


def attend(
    rows: PagedRows, q: Tensor, window: int | None = None, softcap: float | None = None
) -> Tensor:
    with poisoned():
        return paged_decode(
            q,
            rows.pool.layer(0),
            shared(rows, q.shape[1], window),
            scale=q.shape[-1] ** -0.5,
            softcap=softcap,
        )


def check(
    rows: PagedRows, q: Tensor, window: int | None = None, softcap: float | None = None
) -> None:
    out = attend(rows, q, window, softcap)
    expected = exact_attention(rows, q, scale=q.shape[-1] ** -0.5, window=window, softcap=softcap)
    assert out.dtype == torch.bfloat16
    assert float((out.double() - expected).norm() / expected.norm()) <= LIMIT
    assert bool((out[rows.lengths == 0] == 0).all())
    again = attend(rows, q, window, softcap)
    assert torch.equal(again.view(torch.int16), out.view(torch.int16))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_format(head_dim: int, bits: tuple[int, int]) -> None:
    rows = paged_rows(page_format(head_dim, bits, kv_heads=3), MIXED, seed=head_dim)
    for group in (1, 2, 4, 7, 8, 9, 16):
        check(rows, queries(rows, group))
    check(rows, queries(rows, 4), window=100)
    check(rows, queries(rows, 4), window=1)
    check(rows, queries(rows, 16), softcap=2.0)


@pytest.mark.parametrize("bits", WIDTHS)
def test_minima_and_means_far_from_zero(bits: tuple[int, int]) -> None:
    rows = paged_rows(
        page_format(128, bits), [300, 7, 2000], seed=2, key_mean=-20.0, value_mean=-100.0
    )
    check(rows, queries(rows, 8))
    check(rows, queries(rows, 8, scale=8.0), softcap=30.0)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(
    "lengths",
    [
        *([128], [1], [129] * 8, [15000], [8000] * 16, [300] * 100, [128] * 256, [33] * 300),
        # On 132 multiprocessors two to five, seven and fourteen heads' keys a block.
        *([900] * 32, [640] * 48, [70] * 64, [400] * 80, [256] * 112, [200] * 224),
        # As many tokens as if all were as long as the first.
        [4000] * 14 + [2000, 6000],
    ],
    ids=lambda lengths: f"{len(lengths)}x{lengths[0]}",
)
def test_batches(lengths: Sequence[int], bits: tuple[int, int]) -> None:
    rows = paged_rows(page_format(128, bits, kv_heads=8), lengths, seed=len(lengths))
    check(rows, queries(rows, 4))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("steps", [(30, 30), (27, 33), (33, 27), (29, 31), (31, 29)])
def test_blocks_of_two_segments_that_end_near_the_middle_of_their_warps(
    steps: tuple[int, int], bits: tuple[int, int]
) -> None:
    """Each half of the warps has one, or a warp has the end of one and takes part in the other."""
    multiprocessors = gpu_model(torch.device("cuda", torch.cuda.current_device())).multiprocessors
    lengths = [32 * count for count in steps] * multiprocessors
    rows = paged_rows(page_format(128, bits, kv_heads=1), lengths, seed=steps[0])
    check(rows, queries(rows, 4))


@pytest.mark.parametrize("bits", [(8, 4), (4, 4)])
@pytest.mark.parametrize("rows", [5, 260, 1500])
def test_lengths_at_random(rows: int, bits: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(rows)
    longest = 100_000 // rows
    lengths = torch.randint(longest, (rows,), generator=generator)
    lengths[torch.rand(rows, generator=generator) < 0.2] = 0
    batch = paged_rows(page_format(64, bits), lengths.tolist(), seed=rows)
    check(batch, queries(batch, 3))
    check(batch, queries(batch, 3), window=longest // 3)


@pytest.mark.parametrize("bits", [(4, 4), (16, 16)])
def test_a_million_tokens(bits: tuple[int, int]) -> None:
    rows = paged_rows(page_format(64, bits, kv_heads=1), [2**20, 3], seed=3)
    check(rows, queries(rows, 8))
    check(rows, queries(rows, 8), window=100_000)


def test_pages_beyond_the_first_four_gigabytes() -> None:
    form = page_format(128, (16, 16), kv_heads=8)
    page_bytes = form.key.element_bytes * form.num_kv_heads * PAGE_TOKENS
    rows = paged_rows(form, [200, 70], seed=4, spare_pages=3 * 2**32 // page_bytes)
    assert int(rows.slots[0].max()) // PAGE_TOKENS * page_bytes > 2**32
    check(rows, queries(rows, 4))


@pytest.mark.parametrize("bits", WIDTHS)
def test_is_captured_and_replayed_with_other_values(bits: tuple[int, int]) -> None:
    form = page_format(128, bits, kv_heads=4)
    long = paged_rows(form, [3000, 700, 129, 64, 1, 500], seed=5)
    other = [(1, 700), (0, 3000), (0, 2999), (2, 100), (2, 0), (5, 65)]
    q = queries(long, 4)
    prepare_decode(form, q.shape[1], q.device)
    table, lengths = long.page_table.clone(), long.lengths.clone()
    live = PagedRows(pool=long.pool, page_table=table, lengths=lengths, slots=long.slots)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first = attend(live, q)
        second = attend(live, first, window=200)
    for choice in ([(row, int(n)) for row, n in enumerate(long.lengths)], other):
        owners = [row for row, _ in choice]
        slots = tuple(long.slots[row][:length] for row, length in choice)
        table.copy_(long.page_table[owners])
        lengths.copy_(torch.tensor([length for _, length in choice], dtype=torch.int32))
        q.copy_(queries(long, 4, seed=len(slots[0])))
        graph.replay()
        now = PagedRows(pool=long.pool, page_table=table, lengths=lengths, slots=slots)
        check(now, q)
        assert torch.equal(first, attend(now, q))
        assert torch.equal(second, attend(now, first, window=200))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(
    "lengths",
    [[15000], [128] * 128, [1900] * 16, [1, 4000, 0, 77]],
    ids=lambda n: f"{len(n)}x{n[0]}",
)
def test_launches_that_overlap_give_what_each_gives_alone(
    lengths: Sequence[int], bits: tuple[int, int]
) -> None:
    rows = paged_rows(page_format(128, bits, kv_heads=8), lengths, seed=12)
    many = [queries(rows, 4, seed=seed) for seed in range(12)]
    alone = [attend(rows, q) for q in many]
    once = shared(rows, 32)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [
            paged_decode(q, rows.pool.layer(0), once, scale=128**-0.5, softcap=None) for q in many
        ]
    for _ in range(5):
        graph.replay()
    for out, expected in zip(outs, alone, strict=True):
        assert torch.equal(out, expected)


def test_takes_queries_from_wider_rows() -> None:
    rows = paged_rows(page_format(128, (8, 8), kv_heads=2), [70, 0, 300], seed=6)
    qkv = random_bf16(3, 12 * 128, seed=1)
    check(rows, qkv[:, : 8 * 128].unflatten(1, (8, 128)))


def test_no_rows_are_no_work() -> None:
    rows = paged_rows(page_format(), [5], seed=7)
    none = share_rows(rows.pool.format, 4, rows.page_table[:0], rows.lengths[:0], window=None)
    q = random_bf16(0, 4, 128, seed=1)
    out = paged_decode(q, rows.pool.layer(0), none, scale=1.0, softcap=None)
    assert out.shape == (0, 4, 128)


def test_layers_take_the_rows_that_a_step_shared_once() -> None:
    rows = paged_rows(page_format(kv_heads=8), [3000, 0, 200], seed=10)
    once = shared(rows, 32)
    for seed in (1, 2, 3):
        q = queries(rows, 4, seed=seed)
        out = paged_decode(q, rows.pool.layer(0), once, scale=128**-0.5, softcap=None)
        assert torch.equal(out, attend(rows, q))


def test_refuses_what_it_cannot_read() -> None:
    rows = paged_rows(page_format(), [5, 6], seed=8)
    q = queries(rows, 2)
    with pytest.raises(TypeError, match="BF16"):
        attend(rows, q.float())
    with pytest.raises(TypeError, match="contiguous heads"):
        attend(rows, q.transpose(1, 2).contiguous().transpose(1, 2))
    with pytest.raises(TypeError, match="heads"):
        attend(rows, queries(rows, 17))
    odd = paged_rows(page_format(head_dim=80), [5], seed=9)
    with pytest.raises(TypeError, match="does not take"):
        attend(odd, queries(odd, 2))
    for name in ("page_table", "lengths"):
        wide = PagedRows(**{**vars(rows), name: getattr(rows, name).long()})
        with pytest.raises(TypeError, match=name):
            attend(wide, q)
    with pytest.raises(TypeError, match="BF16"):
        paged_decode(q, rows.pool.layer(0), shared(rows, 2), scale=1.0, softcap=None)
    other = paged_rows(page_format(bits=(4, 4)), [5, 6], seed=8)
    with pytest.raises(TypeError, match="shared for"):
        paged_decode(q, rows.pool.layer(0), shared(other, 4), scale=1.0, softcap=None)
