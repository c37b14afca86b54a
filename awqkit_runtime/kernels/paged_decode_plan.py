"""Launches of paged_decode.cu: attention of one new token a row over paged keys and values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch

from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.launch_plan import GpuModel, ceil_div
from awqkit_runtime.kernels.paged_decode_instance import (
    HEAD_DIMS,
    MOST_HEADS,
    SEGMENT_BOUNDS,
    WIDTHS,
    PagedDecodeInstance,
    instance_for,
)

#: Of so many blocks one may be left without work for the sake of an even share.
_IDLE_BLOCKS = 32
#: What a block knows of its share, and each of its warps.
_BLOCK_SHARE_BYTES, _WARP_SHARE_BYTES = 48, 64


@dataclass(frozen=True, kw_only=True)
class PagedDecodePlan:
    """One launch, which serves any rows, pages and lengths.

    teams: that the query heads of a key-value head are cut into. arrivals: zero int32 counters.
    share_bytes: who reads what, which a launch of share_shape finds once a step. steady: see
    plan_steady_decode.
    """

    program: Program
    shape: LaunchShape
    teams: int
    workspace_bytes: int
    arrivals: int
    share_bytes: int
    steady: bool = False

    @property
    def share_shape(self) -> LaunchShape:
        return replace(self.shape, shared_bytes=0)

    @property
    def share_entry(self) -> str:
        return "paged_decode_schedule"

    @property
    def entry(self) -> str:
        return "paged_decode_kernel"

    def even_blocks(self, rows: int, kv_heads: int) -> int:
        """The kernel's argument: blocks that take part where so many rows are equally long; 0: a
        block for each row and head, whatever they are."""
        if self.steady:
            return 0
        return even_blocks(self.shape.grid[0], rows * kv_heads * self.teams)


def can_decode(format: PageFormat, num_heads: int) -> bool:
    """Whether the kernel takes pages of this format for so many query heads."""
    heads = format.num_kv_heads
    return (
        format.dtype == torch.bfloat16
        and format.head_dim in HEAD_DIMS
        and (format.k_bits, format.v_bits) in WIDTHS
        and num_heads % heads == 0
        and 1 <= num_heads // heads <= MOST_HEADS
    )


def plan_of(instance: PagedDecodeInstance, group: int, gpu: GpuModel) -> PagedDecodePlan:
    """group: query heads of a key-value head."""
    return _plan(instance, group, grid=gpu.multiprocessors, steady=False)


def _plan(instance: PagedDecodeInstance, group: int, *, grid: int, steady: bool) -> PagedDecodePlan:
    return PagedDecodePlan(
        program=instance.program,
        shape=LaunchShape(
            grid=(grid, 1, 1),
            block=(32 * instance.warps, 1, 1),
            shared_bytes=instance.shared_bytes,
            # Steady rows may see each other's new tokens, which are not there any sooner.
            overlap=not steady,
        ),
        teams=ceil_div(group, instance.most_heads),
        workspace_bytes=(2 + instance.warps) * grid * instance.record_bytes,
        arrivals=grid,
        share_bytes=(_BLOCK_SHARE_BYTES + instance.warps * _WARP_SHARE_BYTES) * grid,
        steady=steady,
    )


@cache
def plan_paged_decode(
    format: PageFormat, num_heads: int, rows: int, gpu: GpuModel
) -> PagedDecodePlan:
    """How rows of num_heads query heads attend over pages that can_decode allows."""
    return plan_of(*_instance_and_group(format, num_heads, rows, gpu), gpu)


@cache
def plan_steady_decode(
    format: PageFormat, num_heads: int, rows: int, gpu: GpuModel
) -> PagedDecodePlan:
    """The same where no bit of a row may depend on the others, which may be idle.

    A block has a row and head by itself, so that long contexts use few multiprocessors.
    """
    instance, group = _instance_and_group(format, num_heads, rows, gpu)
    grid = rows * format.num_kv_heads * ceil_div(group, instance.most_heads)
    return _plan(instance, group, grid=grid, steady=True)


def _instance_and_group(
    format: PageFormat, num_heads: int, rows: int, gpu: GpuModel
) -> tuple[PagedDecodeInstance, int]:
    """And how many query heads a key-value head has."""
    group = num_heads // format.num_kv_heads
    sizes = (format.head_dim, format.k_bits, format.v_bits)
    return instance_for(*sizes, group, gpu, segments=rows * format.num_kv_heads), group


def plans_of_all_batches(
    format: PageFormat, num_heads: int, gpu: GpuModel
) -> tuple[PagedDecodePlan, ...]:
    """Every one that plan_paged_decode gives for some number of rows."""
    bounds = (bound * gpu.multiprocessors // format.num_kv_heads for bound in (0, *SEGMENT_BOUNDS))
    plans = (plan_paged_decode(format, num_heads, bound + 1, gpu) for bound in bounds)
    return tuple(dict.fromkeys(plans))


def even_blocks(grid: int, segments: int) -> int:
    """How many of a grid's blocks share so many equally long segments evenly.

    Each takes the same number of segments, or each segment the same number of blocks. All of the
    grid where that is impossible, or would leave more than a few without work.

    >>> even_blocks(132, 128), even_blocks(132, 512), even_blocks(132, 300)
    (128, 128, 132)
    """
    if segments <= grid:
        blocks = grid // segments * segments
    else:
        of_a_block = ceil_div(segments, grid)
        blocks = segments // of_a_block if segments % of_a_block == 0 else grid
    return blocks if blocks >= grid - grid // _IDLE_BLOCKS else grid


def score_scale(scale: float, softcap: float | None) -> tuple[float, float]:
    """factor and cap of the kernel's ScoreScale: exponents of two instead of e."""
    log2e = math.log2(math.e)
    if softcap is None:
        return scale * log2e, 0.0
    return 2.0 * log2e * scale / softcap, softcap * log2e
