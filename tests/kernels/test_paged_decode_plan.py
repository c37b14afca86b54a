"""Which launch serves which pages: pure functions, on any machine."""

from __future__ import annotations

import math

import pytest
import torch

from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.kernels.launch_plan import MULTIPROCESSORS, GpuModel
from awqkit_runtime.kernels.paged_decode_instance import (
    HEAD_DIMS,
    MOST_HEADS,
    WIDTHS,
    all_instances,
    instance_for,
)
from awqkit_runtime.kernels.paged_decode_plan import (
    can_decode,
    even_blocks,
    plan_paged_decode,
    plan_steady_decode,
    plans_of_all_batches,
    score_scale,
)

#: KiB of shared memory that a block may have (CUDA C++ Programming Guide).
_BLOCK_SHARED = {"sm_80": 163, "sm_89": 99, "sm_90a": 227, "sm_100a": 227}
GPUS = {
    arch: GpuModel(arch=arch, multiprocessors=number) for arch, number in MULTIPROCESSORS.items()
}


def page_format(
    head_dim: int = 128,
    bits: tuple[int, int] = (8, 8),
    kv_heads: int = 2,
    dtype: torch.dtype = torch.bfloat16,
) -> PageFormat:
    return PageFormat(
        num_layers=1,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        k_bits=bits[0],
        v_bits=bits[1],
        dtype=dtype,
    )


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_takes_every_group_up_to_sixteen(head_dim: int, bits: tuple[int, int]) -> None:
    form = page_format(head_dim, bits)
    assert all(can_decode(form, 2 * group) for group in range(1, MOST_HEADS + 1))
    assert not can_decode(form, 2 * (MOST_HEADS + 1))
    assert not can_decode(form, 3)


def test_refuses_other_pages() -> None:
    assert not can_decode(page_format(head_dim=80), 2)
    assert not can_decode(page_format(bits=(4, 8)), 2)
    assert not can_decode(page_format(bits=(16, 16), dtype=torch.float16), 2)
    assert not can_decode(page_format(bits=(32, 32), dtype=torch.float32), 2)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_every_plan_fits_its_card(gpu: GpuModel) -> None:
    for head_dim in HEAD_DIMS:
        for bits in WIDTHS:
            for group in range(1, MOST_HEADS + 1):
                rows = group * gpu.multiprocessors
                plan = plan_paged_decode(page_format(head_dim, bits), 2 * group, rows, gpu)
                instance = instance_for(head_dim, *bits, group, gpu, segments=2 * rows)
                assert plan.teams * 8 * instance.head_tiles // instance.streams >= group
                assert plan.shape.grid[0] == gpu.multiprocessors
                assert plan.shape.block[0] <= 1024
                assert plan.shape.shared_bytes <= _BLOCK_SHARED[gpu.arch] * 1024
                assert plan.arrivals == plan.shape.grid[0]
                records = (2 + instance.warps) * plan.arrivals
                assert plan.workspace_bytes == records * instance.record_bytes
                assert plan.share_bytes == (48 + 64 * instance.warps) * plan.arrivals


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_every_ring_holds_a_step_and_the_record_that_a_warp_leaves(gpu: GpuModel) -> None:
    for instance in all_instances(gpu):
        assert instance.slots >= 1
        assert instance.slot_bytes % 16 == 0
        assert instance.slots * instance.slot_bytes >= instance.record_bytes


def test_a_slot_holds_keys_and_values_of_a_step_and_their_parameters() -> None:
    gpu = GPUS["sm_90a"]
    assert instance_for(128, 16, 16, 4, gpu).slot_bytes == 16 * (256 + 256)
    assert instance_for(128, 8, 8, 4, gpu).slot_bytes == 16 * (128 + 128 + 8)
    assert instance_for(128, 8, 4, 5, gpu).slot_bytes == 16 * (128 + 64 + 8)
    assert instance_for(128, 8, 4, 4, gpu).slot_bytes == 32 * (128 + 64 + 8)
    assert instance_for(128, 4, 4, 4, gpu).slot_bytes == 32 * (64 + 64 + 8)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_rings_are_as_long_as_fits_but_those_of_codes_of_light_heads(gpu: GpuModel) -> None:
    for instance in all_instances(gpu):
        room = _BLOCK_SHARED[gpu.arch] * 1024 - instance.shared_bytes
        is_full = instance.slots == 6 or room < instance.warps * instance.slot_bytes
        if instance.key_bits < 16 and instance.head_tiles * instance.head_dim <= 128:
            assert instance.slots <= 3 or instance.ring_bytes <= 17_000
            is_long = instance.slots >= 3 and instance.ring_bytes + instance.slot_bytes > 17_000
            assert is_full or is_long
        else:
            assert is_full


def test_slots_of_rings_of_codes() -> None:
    gpu = GPUS["sm_90a"]
    slots = {d: [instance_for(d, *bits, 4, gpu).slots for bits in WIDTHS] for d in (64, 128, 256)}
    assert slots == {64: [6, 3, 6, 5], 128: [3, 4, 3, 3], 256: [3, 3, 3, 4]}


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_every_instance_that_a_plan_asks_for_is_compiled_ahead(gpu: GpuModel) -> None:
    asked = {
        instance_for(head_dim, *bits, group, gpu, segments=segments)
        for head_dim in HEAD_DIMS
        for bits in WIDTHS
        for group in range(1, MOST_HEADS + 1)
        for segments in range(1, 20 * gpu.multiprocessors, gpu.multiprocessors // 2)
    }
    assert asked == set(all_instances(gpu))
    assert len({instance.program for instance in asked}) == len(asked)


@pytest.mark.parametrize(
    ("bits", "warps"),
    [
        ((16, 16), (8, 8, 8, 8)),
        ((8, 8), (12, 12, 12, 12)),
        ((8, 4), (12, 12, 12, 12)),
        ((4, 4), (12, 12, 12, 16)),
    ],
)
def test_codes_get_more_warps_and_many_segments_of_4_bits_more_still(
    bits: tuple[int, int], warps: tuple[int, ...]
) -> None:
    gpu, form = GPUS["sm_90a"], page_format(128, bits, kv_heads=8)
    rows = (1, 8 * 132 // 8, 12 * 132 // 8, 12 * 132 // 8 + 1)
    plans = [plan_paged_decode(form, 32, count, gpu) for count in rows]
    assert [plan.shape.block[0] // 32 for plan in plans] == [*warps]


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
@pytest.mark.parametrize("kv_heads", [1, 2, 8, 64])
def test_plans_of_all_batches_are_those_of_every_number_of_rows(
    gpu: GpuModel, kv_heads: int
) -> None:
    for bits in WIDTHS:
        form = page_format(128, bits, kv_heads=kv_heads)
        every = {
            plan_paged_decode(form, 4 * kv_heads, rows, gpu)
            for rows in range(1, 16 * gpu.multiprocessors // kv_heads)
        }
        assert set(plans_of_all_batches(form, 4 * kv_heads, gpu)) >= every


def test_few_heads_lie_twice_in_a_tile_where_steps_are_two_tiles_long() -> None:
    gpu = GPUS["sm_90a"]
    streams = [instance_for(128, 4, 4, group, gpu).streams for group in (1, 4, 5, 8, 9)]
    assert streams == [2, 2, 1, 1, 1]
    assert [instance_for(128, *bits, 4, gpu).streams for bits in WIDTHS] == [1, 1, 2, 2]
    for instance in all_instances(gpu):
        assert instance.token_tiles % instance.streams == 0
        assert instance.streams == 1 or (instance.head_tiles == 1 and instance.key_bits < 16)


def test_equally_long_segments_get_equally_many_blocks_or_blocks_equally_many_segments() -> None:
    assert [even_blocks(264, segments) for segments in (8, 128, 512, 2048)] == [264, 256, 256, 256]
    assert [even_blocks(132, segments) for segments in (8, 128, 2048)] == [128, 128, 128]
    # Too many blocks would have nothing to do.
    assert [even_blocks(264, segments) for segments in (100, 192, 265, 300)] == [264] * 4
    for grid in (1, 2, 7, 132, 264, 296):
        for segments in range(1, 3000):
            blocks = even_blocks(grid, segments)
            assert grid - grid // 32 <= blocks <= grid
            assert blocks == grid or segments % blocks == 0 or blocks % segments == 0


def test_a_plan_counts_every_team_of_heads_as_a_segment() -> None:
    plan = plan_paged_decode(page_format(head_dim=256, kv_heads=8), 8 * 16, 8, GPUS["sm_90a"])
    assert (plan.teams, plan.shape.grid[0]) == (2, 132)
    assert plan.even_blocks(rows=8, kv_heads=8) == 128
    assert plan.even_blocks(rows=9, kv_heads=8) == 132


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_record_holds_maxima_sums_and_outputs_of_every_lane(bits: tuple[int, int]) -> None:
    instance = instance_for(128, *bits, 4, GPUS["sm_90a"])
    # Of two streams each has half of the dimensions of four heads.
    heads = 8 * instance.head_tiles // instance.streams
    # Each of the lanes that share a pair of heads, of either stream, has a copy of maxima and sums.
    copies = 8 * instance.streams
    assert instance.record_bytes == 4 * (heads * 128 + copies * 2 * heads)


def test_a_steady_plan_has_a_block_for_each_row_and_team_of_heads() -> None:
    gpu = GPUS["sm_90a"]
    plan = plan_steady_decode(page_format(head_dim=256, kv_heads=8), 8 * 16, 16, gpu)
    assert (plan.teams, plan.shape.grid[0]) == (2, 16 * 8 * 2)
    assert plan.even_blocks(rows=16, kv_heads=8) == 0
    assert not plan.shape.overlap
    assert (
        plan.program
        == plan_paged_decode(page_format(head_dim=256, kv_heads=8), 8 * 16, 16, gpu).program
    )


def test_scores_become_exponents_of_two() -> None:
    factor, cap = score_scale(0.125, None)
    assert 2.0 ** (factor * 3.0) == pytest.approx(math.exp(0.125 * 3.0))
    assert cap == 0.0
    factor, cap = score_scale(0.125, 20.0)
    for product in (-300.0, -1.0, 0.0, 2.0, 500.0):
        capped = cap - cap * 2.0 / (1.0 + 2.0 ** (factor * product))
        expected = 20.0 * math.tanh(0.125 * product / 20.0)
        assert capped * math.log(2.0) == pytest.approx(expected, abs=1e-6)
