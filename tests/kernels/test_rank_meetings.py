"""Ranks that meet in each other's memory: here one GPU is all of them, each on its own stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from awqkit_runtime.kernels import meetings as module
from awqkit_runtime.kernels import reference
from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.meetings import Meetings, inbox_bytes, sum_places
from awqkit_runtime.kernels.rank_choice import CHOICE_PLACES, rank_choice_
from awqkit_runtime.kernels.rank_choice import PROGRAM as CHOICE
from awqkit_runtime.kernels.rank_sum import PROGRAM as SUM
from awqkit_runtime.kernels.rank_sum import rank_sum, rank_sum_add_rms_norm
from tests.kernels.cuda_random import random_bf16

ROWS = 5
gpu = pytest.mark.gpu


def meet(ranks: int, places: int, *, last_meeting: int = 0) -> tuple[list[Meetings], Tensor]:
    """Of ranks that share the current GPU, and the memory where they meet."""
    device = torch.device("cuda", torch.cuda.current_device())
    for program, entry in ((SUM, "rank_sum"), (CHOICE, "rank_choice")):
        kernel(program, entry, device)  # Loaded now: that may wait for all that runs.
    size = inbox_bytes(ranks=ranks, rows=ROWS, places=places)
    inboxes = torch.zeros(ranks, size, dtype=torch.uint8, device=device)
    found = [
        Meetings(
            rank=rank,
            inboxes=tuple(inbox.data_ptr() for inbox in inboxes),
            counts=torch.full((ROWS,), last_meeting, dtype=torch.int32, device=device),
            given_up=torch.zeros(1, dtype=torch.int32, pin_memory=True),
        )
        for rank in range(ranks)
    ]
    torch.cuda.synchronize()
    return found, inboxes


def all_at_once(works: list[Callable[[], None]], *, times: int = 1) -> None:
    """Every rank's work as a graph on a stream of its own, replayed so many times."""
    graphs = []
    for work in works:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        graphs.append((graph, torch.cuda.Stream()))
    torch.cuda.synchronize()
    for _ in range(times):
        for graph, stream in graphs:
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()


def rounded_sum(parts: list[Tensor]) -> Tensor:
    """In FP32, in the order of the ranks."""
    total = torch.zeros_like(parts[0], dtype=torch.float32)
    for part in parts:
        total += part.float()
    return total.bfloat16()


@gpu
@pytest.mark.parametrize("last_meeting", [0, -3])
@pytest.mark.parametrize(("ranks", "n"), [(2, 4096), (2, 8), (3, 2056), (2, 16384)])
def test_all_ranks_get_the_same_sum_and_norm(ranks: int, n: int, last_meeting: int) -> None:
    """Also where the count of meetings starts anew (−3 is 2³² − 3)."""
    found, _memory = meet(ranks, sum_places(n), last_meeting=last_meeting)
    weight = random_bf16(n, seed=1)
    for rows in (1, 2, ROWS):
        x = random_bf16(rows, n, seed=rows, scale=3.0)
        parts = [random_bf16(rows, n, seed=10 * rows + rank) for rank in range(ranks)]
        sums = [torch.full_like(x, float("nan")) for _ in parts]
        totals, normed = ([torch.full_like(x, float("nan")) for _ in parts] for _ in "ab")

        def work(
            rank: int, x: Tensor, part: Tensor, summed: Tensor, total: Tensor, out: Tensor
        ) -> None:
            summed.copy_(rank_sum(found[rank], part))
            added, norm = rank_sum_add_rms_norm(found[rank], x, part, weight, 1e-5)
            total.copy_(added)
            out.copy_(norm)

        each = zip(range(ranks), parts, sums, totals, normed, strict=True)
        all_at_once([partial(work, rank, x, *rest) for rank, *rest in each], times=3)
        summed = rounded_sum(parts)
        expected = reference.add_rms_norm(
            x.cpu(), summed.cpu(), weight.cpu(), eps=1e-5, unit_offset=False
        )
        unit = torch.finfo(torch.bfloat16).eps
        for rank in range(ranks):
            assert torch.equal(sums[rank], summed)
            assert torch.equal(totals[rank].cpu(), expected[0])
            assert torch.equal(normed[rank], normed[0])
            torch.testing.assert_close(
                normed[rank].double().cpu(), expected[1].double(), rtol=2 * unit, atol=1e-6
            )


@gpu
def test_many_meetings_in_a_row_never_mix() -> None:
    """Each adds what the one before gave, so that a stale packet would show in all that follow."""
    n = 1024
    found, _memory = meet(2, sum_places(n))
    start = random_bf16(ROWS, n, seed=0).abs()
    states = [start.clone(), start.clone()]

    def work(rank: int) -> None:
        for _ in range(8):
            summed = rank_sum(found[rank], states[rank])
            states[rank].copy_(summed * 0.5 + 0.25 * (1 + rank))

    all_at_once([partial(work, rank) for rank in range(2)], times=50)
    expected = [start.clone(), start.clone()]
    for _ in range(400):
        summed = rounded_sum(expected)
        expected = [summed * 0.5 + 0.25 * (1 + rank) for rank in range(2)]
    assert all(map(torch.equal, states, expected))


@gpu
@pytest.mark.parametrize("ranks", [2, 4])
def test_all_ranks_choose_the_likeliest_token_of_all(ranks: int) -> None:
    found, _memory = meet(ranks, CHOICE_PLACES)
    generator = torch.Generator().manual_seed(ranks)
    for looking in (ranks, 1):  # Where one looks at all of the vocabulary, the others at nothing.
        values = torch.randint(-2, 3, (ranks, ROWS), generator=generator).float()
        values[:, 0] = -float("inf")
        tokens = torch.randint(1000, (ranks, ROWS), generator=generator)
        finite = torch.rand(ranks, ROWS, generator=generator) < 0.8
        own = torch.stack((tokens, finite.long()), dim=-1).cuda()
        on_gpu = values.cuda()
        choices = torch.full((ranks, ROWS, 2), -7, dtype=torch.int64, device="cuda")

        works = []
        for rank in range(ranks):
            seen = (own[rank], on_gpu[rank]) if rank < looking else (None, None)
            work = partial(rank_choice_, found[rank], *seen, choices[rank], first_token=1000 * rank)
            works.append(work)
        all_at_once(works, times=2)
        best = values[:looking].argmax(dim=0)  # Of equal ones the first.
        chosen = tokens.gather(0, best.unsqueeze(0))[0] + 1000 * best
        expected = torch.stack((chosen, finite[:looking].all(dim=0).long()), dim=-1)
        for rank in range(ranks):
            assert torch.equal(choices[rank].cpu(), expected)


@gpu
def test_nobody_waits_for_a_rank_that_is_gone() -> None:
    (alone, _), _memory = meet(2, sum_places(256))
    part = random_bf16(ROWS, 256, seed=0)
    torch.cuda.synchronize()
    rank_sum(alone, part)
    done = torch.cuda.Event()
    done.record()
    assert not done.query()
    alone.given_up.fill_(1)
    torch.cuda.synchronize()
    assert done.query()


def test_ranks_lie_in_memory_as_the_kernels_read_them() -> None:
    """Eight addresses, one more, two numbers of 32 bits: struct Ranks of rank_packets.cuh."""
    counts, given_up = torch.zeros(3, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    found = Meetings(rank=1, inboxes=(16, 32, 48), counts=counts, given_up=given_up)
    raw = bytes(found.as_argument())
    assert len(raw) == ctypes.sizeof(module._Ranks) == 8 * module.MOST_RANKS + 8 + 4 + 4
    words = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, 72, 8)]
    assert words == [16, 32, 48, 0, 0, 0, 0, 0, given_up.data_ptr()]
    assert raw[72:] == (1).to_bytes(4, "little") + (3).to_bytes(4, "little")


def test_inboxes_hold_two_slots_of_each_rank() -> None:
    places = sum_places(4096)
    assert places * module.NUMBERS_A_PLACE == 4096
    assert inbox_bytes(ranks=2, rows=1, places=places) == 2 * 2 * 4096 * 4
