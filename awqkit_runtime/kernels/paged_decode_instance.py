"""Compilations of paged_decode.cu: which one serves which pages and heads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.launch_plan import GpuModel

HEAD_DIMS = (64, 96, 128, 256)
#: Bits of keys and of values.
WIDTHS = ((16, 16), (8, 8), (4, 4), (8, 4))
MOST_HEADS = 16
#: Query heads of one tile of the tensor cores, and tokens of another.
_TILE_HEADS, _TILE_TOKENS = 8, 16
#: Of shared memory, for what all warps of a block know.
_FIXED_BYTES = 2**10
#: Of a block. Codes are more to compute; those of 4 bits leave registers for more warps still.
_WARPS, _WARPS_ON_CODES, _WARPS_ON_MANY_SEGMENTS = 8, 12, 16
#: Segments of a block beyond which it may have another number of warps.
SEGMENT_BOUNDS = (_WARPS_ON_CODES,)
#: Of a warp's ring. More would not be under way any sooner.
_FEWEST_SLOTS, _MOST_SLOTS = 2, 6
#: Of a warp's ring of codes for light heads, unless it has no more than so many slots. With more,
#: blocks that begin early ask for so much that the first steps of those behind them wait.
_MOST_BYTES_OF_CODES, _SLOTS_OF_ANY_SIZE = 17_000, 3
#: Heads of so many elements in all leave a thread half of its registers for the rest.
_LIGHT_ELEMENTS = 128
#: Registers of one tile of keys and values up to which a step takes two of them.
_SMALL_TILE, _SMALL_TILE_OF_STREAMS, _SMALL_TILE_AMONG_MANY_REGISTERS = 16, 24, 32


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
    def most_heads(self) -> int:
        """Query heads that a block works on together."""
        return _TILE_HEADS * self.head_tiles // self.streams

    @property
    def record_bytes(self) -> int:
        """Of the running softmax of one segment, as a warp hands it on."""
        return 512 * self.head_tiles * (1 + self.head_dim // 16 // self.streams)

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


def instance_for(
    head_dim: int, key_bits: int, value_bits: int, group: int, gpu: GpuModel, *, segments: int = 1
) -> PagedDecodeInstance:
    """The instance for `group` query heads of a key-value head.

    segments: rows times key-value heads.

    A warp keeps queries and outputs in registers, so bigger heads leave room for fewer warps. What
    is under way to their rings is what a multiprocessor waits for.
    """
    head_tiles = 2 if group > _TILE_HEADS and head_dim <= _LIGHT_ELEMENTS else 1
    light = _is_light(head_tiles, head_dim)
    twice = key_bits < 16 and 2 * group <= _TILE_HEADS
    most_warps = _WARPS
    if light and key_bits < 16:
        has_room = twice and key_bits == 4
        most_warps = _warps_on_codes(segments / gpu.multiprocessors, has_room=has_room)
    all_warps = (_WARPS_ON_MANY_SEGMENTS, _WARPS_ON_CODES, _WARPS, _WARPS // 2)
    warps_that_may_be = [warps for warps in all_warps if warps <= most_warps]
    all_tiles = _token_tiles(head_dim, head_tiles, key_bits + value_bits, twice=twice)
    for warps, token_tiles in product(warps_that_may_be, all_tiles):
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


def _is_light(head_tiles: int, head_dim: int) -> bool:
    return head_tiles * head_dim <= _LIGHT_ELEMENTS


def _warps_on_codes(segments: float, *, has_room: bool) -> int:
    """segments: of a block. has_room: whether registers allow the most."""
    return _WARPS_ON_MANY_SEGMENTS if has_room and segments > _WARPS_ON_CODES else _WARPS_ON_CODES


def _token_tiles(head_dim: int, head_tiles: int, pair_bits: int, *, twice: bool) -> tuple[int, ...]:
    """Of a step, the best first. pair_bits: of a key and a value. twice: heads lie so in a tile."""
    light = _is_light(head_tiles, head_dim)
    registers = _TILE_TOKENS * head_dim * pair_bits // (32 * 32)
    small = _SMALL_TILE if light or head_tiles > 1 else _SMALL_TILE_AMONG_MANY_REGISTERS
    if registers <= small:
        return (2,)
    return (2, 1) if twice and light and registers <= _SMALL_TILE_OF_STREAMS else (1,)


def _with_slots(instance: PagedDecodeInstance, gpu: GpuModel) -> PagedDecodeInstance:
    """With rings that fill the shared memory of a multiprocessor, or are as long as is of use."""
    room = (gpu.shared_bytes_a_block(1) - _FIXED_BYTES) // instance.warps
    most = min(_MOST_SLOTS, room // instance.slot_bytes)
    if instance.key_bits < 16 and _is_light(instance.head_tiles, instance.head_dim):
        most = min(most, max(_SLOTS_OF_ANY_SIZE, _MOST_BYTES_OF_CODES // instance.slot_bytes))
    return replace(instance, slots=most)


def all_instances(gpu: GpuModel) -> list[PagedDecodeInstance]:
    """Every one that instance_for can give."""
    groups = (1, _TILE_HEADS, MOST_HEADS)
    segments = (bound * gpu.multiprocessors + 1 for bound in (0, *SEGMENT_BOUNDS))
    instances = (
        instance_for(head_dim, *widths, group, gpu, segments=count)
        for head_dim, widths, group, count in product(HEAD_DIMS, WIDTHS, groups, segments)
    )
    return list(dict.fromkeys(instances))
