"""Attention to queries that the launch before, with which it overlaps, changed where they lie."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from awqkit_runtime.kernels.paged_decode import paged_decode
from awqkit_runtime.kernels.rotary_append import LayerFrame, rotary_append_
from tests.kernels.cuda_random import random_bf16, random_fp32
from tests.kernels.paged_rows import PagedRows, paged_rows
from tests.kernels.test_paged_decode import attend, shared
from tests.kernels.test_paged_decode_plan import page_format

pytestmark = pytest.mark.gpu

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
LAUNCHES = 12


class Turned:
    """Projections, whose queries a launch turns in place, by the same angles every time."""

    def __init__(self, rows: PagedRows) -> None:
        count = len(rows.lengths)
        self.qkv = random_bf16(count, (HEADS + 2 * KV_HEADS) * HEAD_DIM, seed=1)
        angles = random_fp32(count, HEAD_DIM // 2, seed=1).repeat(1, 2)
        self._cos, self._sin = angles.cos(), angles.sin()
        self._pages = rows.pool.layer(0)
        self._nowhere = torch.full((count,), -1, dtype=torch.int64, device="cuda")

    def turn(self) -> Tensor:
        """The queries; no key is stored."""
        rotary_append_(
            *(self.qkv, self._cos, self._sin, self._pages, self._nowhere),
            query_heads=HEADS,
            norms=None,
            frame=LayerFrame(),
        )
        return self.qkv[:, : HEADS * HEAD_DIM].unflatten(1, (HEADS, HEAD_DIM))


@pytest.mark.parametrize("bits", [(16, 16), (8, 8), (4, 4)])
@pytest.mark.parametrize(
    "lengths", [[15000], [1900] * 16, [90, 0, 7]], ids=lambda n: f"{len(n)}x{n[0]}"
)
def test_no_launch_sees_queries_as_they_were(lengths: Sequence[int], bits: tuple[int, int]) -> None:
    """A multiprocessor that has them in its L1 from the launch before must read them anew."""
    rows = paged_rows(page_format(HEAD_DIM, bits, KV_HEADS), lengths, seed=13)
    projections = Turned(rows)
    before = projections.qkv.clone()
    expected = [attend(rows, projections.turn().clone()) for _ in range(LAUNCHES)]
    assert not torch.equal(expected[0], expected[1])
    once, pages = shared(rows, HEADS), rows.pool.layer(0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [
            paged_decode(projections.turn(), pages, once, scale=HEAD_DIM**-0.5, softcap=None)
            for _ in range(LAUNCHES)
        ]
    for _ in range(5):
        projections.qkv.copy_(before)
        for out in outs:
            out.fill_(torch.nan)
        graph.replay()
        for out, wanted in zip(outs, expected, strict=True):
            assert torch.equal(out, wanted)
