"""Attention of batches in which every warp has a segment of its own, and takes parts of others.

Codes of 4 bits get more warps a block there: instances that no smaller batch runs.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from awqkit_runtime.kernels.paged_decode import paged_decode, prepare_decode
from awqkit_runtime.kernels.paged_decode_instance import WIDTHS
from awqkit_runtime.kernels.paged_decode_plan import plans_of_all_batches
from awqkit_runtime.kernels.w4_tiled_linear import gpu_model
from tests.kernels.paged_rows import PagedRows, paged_rows
from tests.kernels.test_paged_decode import attend, check, queries, shared
from tests.kernels.test_paged_decode_plan import page_format

pytestmark = pytest.mark.gpu

KV_HEADS, GROUP = 8, 4
#: Of a block.
FEW_SEGMENTS, MANY_SEGMENTS = 8, 16
LONGEST = 700
#: Of one row besides, which several blocks have parts of.
LONG = 20_000


def many_rows(head_dim: int, bits: tuple[int, int], segments: int, seed: int) -> PagedRows:
    """Of up to LONGEST tokens, one in five idle, but for the first. segments: of a block."""
    multiprocessors = gpu_model(torch.device("cuda", torch.cuda.current_device())).multiprocessors
    rows = segments * multiprocessors // KV_HEADS
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LONGEST + 1, (rows,), generator=generator)
    lengths[torch.rand(rows, generator=generator) < 0.2] = 0
    lengths[0] = LONG
    return paged_rows(page_format(head_dim, bits, kv_heads=KV_HEADS), lengths.tolist(), seed=seed)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("segments", [FEW_SEGMENTS, MANY_SEGMENTS])
def test_rows_that_warps_cut(head_dim: int, bits: tuple[int, int], segments: int) -> None:
    rows = many_rows(head_dim, bits, segments, seed=head_dim)
    heads = GROUP * KV_HEADS
    plans = plans_of_all_batches(rows.pool.format, heads, gpu_model(rows.lengths.device))
    assert shared(rows, heads).plan in plans
    check(rows, queries(rows, GROUP))
    check(rows, queries(rows, 3), window=LONGEST // 2)
    check(rows, queries(rows, 1), softcap=2.0)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("segments", [FEW_SEGMENTS, MANY_SEGMENTS])
def test_launches_overlap_and_a_graph_serves_rows_that_come_and_go(
    bits: tuple[int, int], segments: int
) -> None:
    every = many_rows(128, bits, segments, seed=1)
    table, lengths = every.page_table.clone(), every.lengths.clone()
    live = replace(every, page_table=table, lengths=lengths)
    many = [queries(every, GROUP, seed=seed) for seed in range(6)]
    prepare_decode(every.pool.format, GROUP * KV_HEADS, table.device)
    pages, scale = every.pool.layer(0), 128**-0.5
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once = shared(live, GROUP * KV_HEADS)
        torch.ones_like(lengths)  # A launch without overlap, as a step has it behind the shares.
        outs = [paged_decode(q, pages, once, scale=scale, softcap=None) for q in many]
    for keep in (len(lengths), 1, len(lengths) // 2):
        slots = tuple(row[: len(row) if i < keep else 0] for i, row in enumerate(every.slots))
        counts = [len(row) for row in slots]
        lengths.copy_(torch.tensor(counts, dtype=torch.int32))
        table.copy_(torch.where(lengths[:, None] > 0, every.page_table, 2**30))
        for _ in range(3):
            for out in outs:
                out.fill_(torch.nan)
            graph.replay()
            for q, out in zip(many, outs, strict=True):
                assert torch.equal(out, attend(live, q))
        check(replace(live, slots=slots), many[0])
