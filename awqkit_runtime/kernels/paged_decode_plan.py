"""Launches of paged_decode.cu: attention of one new token a row over paged keys and values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import torch

from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.launch_plan import GpuModel, ceil_div

HEAD_DIMS = (64, 96, 128, 256)
#: Bits of keys and of values.
WIDTHS = ((16, 16), (8, 8), (4, 4), (8, 4))
MOST_HEADS = 16
#: Query heads of one tile of the tensor cores, and tokens of another.
_TILE_HEADS, _TILE_TOKENS = 8, 16
#: Of shared memory, for what all warps of a block know.
_FIXED_BYTES = 2**10
#: What a block, and each of its warps, knows of its share.
_SHARE_BYTES = 48
#: Of a block. Codes are more to compute.
_WARPS, _WARPS_ON_CODES = 8, 12
#: Of a warp's ring. More would not be under way any sooner.
_FEWEST_SLOTS, _MOST_SLOTS = 2, 6
#: Heads of so many elements in all leave a thread half of its registers for the rest.
_LIGHT_ELEMENTS = 128
#: Of so many blocks one may be left without work for the sake of an even share.
_IDLE_BLOCKS = 32
#: Registers of one tile of keys and values up to which a step takes two of them.
_SMALL_TILE, _SMALL_TILE_AMONG_MANY_REGISTERS = 16, 32


@dataclass(frozen=True, kw_only=True)
class PagedDecodeInstance:
    """The macros of paged_decode.cu."""

    head_dim: int
    key_bits: int
    value_bits: int
    head_tiles: int
    token_tiles: int
    #: 2: a tile of heads holds those of a key-value head twice, over different tokens.
    streams: int
    warps: int
    slots: int

    @property
    def program(self) -> Program:
        return Program(
            stem="paged_decode",
            defines=(
                f"PD_HEAD_DIM={self.head_dim}",
                f"PD_KEY_BITS={self.key_bits}",
                f"PD_VALUE_BITS={self.value_bits}",
                f"PD_HEAD_TILES={self.head_tiles}",
                f"PD_TOKEN_TILES={self.token_tiles}",
                f"PD_STREAMS={self.streams}",
                f"PD_WARPS={self.warps}",
                f"PD_SLOTS={self.slots}",
            ),
        )

    @property
    def record_bytes(self) -> int:
        """Of the running softmax of one segment, as a warp hands it on."""
        return 512 * self.head_tiles * (1 + self.head_dim // 16)

    @property
    def shared_bytes(self) -> int:
        return _FIXED_BYTES + self.warps * self.ring_bytes

    @property
    def ring_bytes(self) -> int:
        """Of each warp, which leaves a record in it in the end."""
        return self.slots * self.slot_bytes

    @property
    def slot_bytes(self) -> int:
        """Keys and values of one step of a warp, and the parameters of codes."""
        token = self.head_dim * (self.key_bits + self.value_bits) // 8
        return _TILE_TOKENS * self.token_tiles * (token + (8 if self.key_bits < 16 else 0))

    def plan(self, group: int, gpu: GpuModel) -> PagedDecodePlan:
        """group: query heads of a key-value head."""
        grid = gpu.multiprocessors
        return PagedDecodePlan(
            program=self.program,
            shape=LaunchShape(
                grid=(grid, 1, 1),
                block=(32 * self.warps, 1, 1),
                shared_bytes=self.shared_bytes,
                overlap=True,
            ),
            teams=ceil_div(group, _TILE_HEADS * self.head_tiles // self.streams),
            workspace_bytes=(2 + self.warps) * grid * self.record_bytes,
            arrivals=grid,
            share_bytes=(1 + self.warps) * grid * _SHARE_BYTES,
        )


@dataclass(frozen=True, kw_only=True)
class PagedDecodePlan:
    """One launch, which serves any rows, pages and lengths.

    teams: that the query heads of a key-value head are cut into. arrivals: zero int32 counters.
    share_bytes: who reads what, which a launch of share_shape finds once a step.
    """

    program: Program
    shape: LaunchShape
    teams: int
    workspace_bytes: int
    arrivals: int
    share_bytes: int

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
        """The kernel's argument: blocks that take part where so many rows are equally long."""
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


@cache
def plan_paged_decode(format: PageFormat, num_heads: int, gpu: GpuModel) -> PagedDecodePlan:
    """How rows of num_heads query heads attend over pages that can_decode allows."""
    group = num_heads // format.num_kv_heads
    instance = instance_for(format.head_dim, format.k_bits, format.v_bits, group, gpu)
    return instance.plan(group, gpu)


def instance_for(
    head_dim: int, key_bits: int, value_bits: int, group: int, gpu: GpuModel
) -> PagedDecodeInstance:
    """The instance for `group` query heads of a key-value head.

    A warp keeps queries and outputs in registers, so bigger heads leave room for fewer warps. Their
    rings fill the shared memory: what is under way to them is what a multiprocessor waits for.
    """
    head_tiles = 2 if group > _TILE_HEADS and head_dim <= _LIGHT_ELEMENTS else 1
    light = head_tiles * head_dim <= _LIGHT_ELEMENTS
    most_warps = _WARPS_ON_CODES if light and key_bits < 16 else _WARPS
    tile_registers = _TILE_TOKENS * head_dim * (key_bits + value_bits) // (32 * 32)
    small = _SMALL_TILE if light or head_tiles > 1 else _SMALL_TILE_AMONG_MANY_REGISTERS
    twice = key_bits < 16 and 2 * group <= _TILE_HEADS
    steps = [2 if tile_registers <= small else 1]
    if twice and light and steps == [1]:
        steps = [2, 1]
    for warps, token_tiles in product((most_warps, _WARPS, _WARPS // 2), steps):
        instance = _with_slots(
            PagedDecodeInstance(
                head_dim=head_dim,
                key_bits=key_bits,
                value_bits=value_bits,
                head_tiles=head_tiles,
                token_tiles=token_tiles,
                streams=token_tiles if twice else 1,
                warps=warps,
                slots=0,
            ),
            gpu,
        )
        if instance.slots >= _FEWEST_SLOTS and instance.ring_bytes >= instance.record_bytes:
            break
    return instance


def _with_slots(instance: PagedDecodeInstance, gpu: GpuModel) -> PagedDecodeInstance:
    """With rings that fill the shared memory of a multiprocessor."""
    room = (gpu.shared_bytes_a_block(1) - _FIXED_BYTES) // instance.warps
    return replace(instance, slots=min(_MOST_SLOTS, room // instance.slot_bytes))


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


def all_instances(gpu: GpuModel) -> list[PagedDecodeInstance]:
    """Every one that instance_for can give."""
    instances = (
        instance_for(head_dim, *widths, group, gpu)
        for head_dim in HEAD_DIMS
        for widths in WIDTHS
        for group in (1, _TILE_HEADS, MOST_HEADS)
    )
    return list(dict.fromkeys(instances))


def score_scale(scale: float, softcap: float | None) -> tuple[float, float]:
    """factor and cap of the kernel's ScoreScale: exponents of two instead of e."""
    log2e = math.log2(math.e)
    if softcap is None:
        return scale * log2e, 0.0
    return 2.0 * log2e * scale / softcap, softcap * log2e
