"""Steady decode attention: the bits of a row, whatever other rows are there."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from awqkit_runtime.kernels.paged_decode import paged_decode, prepare_steady_decode, share_rows
from awqkit_runtime.kernels.paged_decode_instance import HEAD_DIMS, WIDTHS
from tests.kernels.paged_rows import PagedRows, exact_attention, paged_rows
from tests.kernels.test_paged_decode import LIMIT, poisoned, queries
from tests.kernels.test_paged_decode_plan import page_format

pytestmark = pytest.mark.gpu

#: With 16 rows of 10 steps the sum of the second one is as if all were equally long.
BATCHES = [
    [0, 1, 63, 64, 65, 1000, 0, 130, 17, 4000, 16, 15, 31, 2, 0, 300],
    [160, *[0] * 14, 2400],
    [320, *[0] * 14, 4800],
    [15000, *[128] * 15],
]


def attend(rows: PagedRows, q: Tensor, lengths: Tensor, window: int | None) -> Tensor:
    form = rows.pool.format
    with poisoned():
        shared = share_rows(
            *(form, q.shape[1], rows.page_table, lengths), window=window, steady=True
        )
        return paged_decode(q, rows.pool.layer(0), shared, scale=q.shape[-1] ** -0.5, softcap=None)


def check(rows: PagedRows, group: int, window: int | None = None) -> None:
    q = queries(rows, group)
    together = attend(rows, q, rows.lengths, window)
    expected = exact_attention(rows, q, scale=q.shape[-1] ** -0.5, window=window, softcap=None)
    assert float((together.double() - expected).norm() / expected.norm()) <= LIMIT
    for row in range(len(rows.slots)):
        alone = torch.zeros_like(rows.lengths)
        alone[row] = rows.lengths[row]
        assert torch.equal(attend(rows, q, alone, window)[row], together[row])


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("lengths", BATCHES, ids=lambda lengths: str(lengths[0]))
def test_no_row_depends_on_the_others(
    lengths: Sequence[int], head_dim: int, bits: tuple[int, int]
) -> None:
    rows = paged_rows(page_format(head_dim, bits, kv_heads=3), lengths, seed=head_dim)
    for group in (1, 4, 9):
        check(rows, group)
    check(rows, 4, window=100)


@pytest.mark.parametrize("bits", WIDTHS)
def test_rows_see_what_a_launch_in_front_stored_for_others(bits: tuple[int, int]) -> None:
    """Tokens of one sequence, whose keys are stored at once and attended right after."""
    form = page_format(128, bits, kv_heads=8)
    many = paged_rows(form, [500], seed=1)
    count, slots = 16, many.slots[0]
    table = many.page_table.expand(count, -1).contiguous()
    lengths = torch.arange(485, 501, dtype=torch.int32, device="cuda")
    rows = PagedRows(
        pool=many.pool,
        page_table=table,
        lengths=lengths,
        slots=tuple(slots[:length] for length in lengths.tolist()),
    )
    k, v = (x.bfloat16() for x in many.pool.gather(0, slots[-count:]))
    q = queries(rows, 4)
    expected = attend(rows, q, lengths, None)
    prepare_steady_decode(form, 32, count, q.device)
    zeros = torch.zeros_like(k)
    for _ in range(20):
        many.pool.append(0, zeros, zeros, slots[-count:])
        many.pool.append(0, k, v, slots[-count:])
        found = attend(rows, q, lengths, None)
    assert found.isfinite().all()
    if bits == (16, 16):  # Codes are fitted anew.
        assert torch.equal(found, expected)


def test_a_graph_serves_other_rows() -> None:
    form, rng = page_format(128, (4, 4), kv_heads=8), random.Random(1)
    rows = paged_rows(form, [rng.randrange(1, 900) for _ in range(16)], seed=2)
    q = queries(rows, 4)
    prepare_steady_decode(form, 32, 16, q.device)
    lengths = rows.lengths.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        shared = share_rows(form, 32, rows.page_table, lengths, window=None, steady=True)
        out = paged_decode(q, rows.pool.layer(0), shared, scale=128**-0.5, softcap=None)
    for share in (1.0, 0.5, 0.1, 0.0):
        lengths.copy_((rows.lengths * share).int())
        graph.replay()
        assert torch.equal(out, attend(rows, q, lengths, None))
