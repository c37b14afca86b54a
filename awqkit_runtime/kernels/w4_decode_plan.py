"""Launches of the kernels for few tokens: w4_decode.cu, w4_decode_wide.cu, w4_decode_portable.cu.

Which instance is fastest for which shape was measured on an H200; see docs/kernel_log.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.launch_plan import Boxes, GpuModel, LaunchPlan, ceil_div
from awqkit_runtime.kernels.w4_tiles import row_tiles

#: Codes and parameters of 16 rows and one group.
_TILE_BYTES = 1024 + 64
#: Of x in one group of inputs, for one token.
_GROUP_X_BYTES = 2 * GROUP_SIZE
_MOST_X_STAGES = 32
#: Blocks in clusters: of more not all would find room at once, as a cluster lies within one part
#: of the chip.
_LARGEST_GRID = 128


@dataclass(frozen=True, kw_only=True)
class DecodeInstance:
    """The macros of w4_decode.cu, for up to `tokens` tokens.

    share, split: blocks of a cluster that fetch x together, or that each have a part of K; one of
    the two is 1.  blocks: on one multiprocessor at once.
    """

    tokens: int
    depth: int
    blocks: int
    share: int = 1
    split: int = 1
    warps: int = 8
    chunk: int = 2

    def blocks_of(self, n: int, gpu: GpuModel) -> int:
        """Parts of the output's rows, as many as there is room for: one block or cluster each."""
        wanted = min(row_tiles(n), gpu.multiprocessors * self.blocks // self.split)
        return max(wanted // self.share, 1) * self.share

    def shared_bytes(self, m: int, n: int, k: int, gpu: GpuModel) -> int:
        """As the kernel lays it out: barriers, partial sums, the ring, x, a cluster's sums."""
        eights = self.tokens // 8
        barriers = ceil_div(16 * self.depth + 40, 128) * 128
        ring = self.depth * self.warps * self.chunk * _TILE_BYTES
        groups = ceil_div(k // GROUP_SIZE, self.split)
        size = barriers + 1280 * self.warps * eights + ring + m * (groups * _GROUP_X_BYTES + 16)
        if self.split > 1:
            size += 512 * eights * ceil_div(row_tiles(n), self.blocks_of(n, gpu))
        return size

    def fits(self, m: int, n: int, k: int, gpu: GpuModel) -> bool:
        most = gpu.shared_bytes_a_block(self.blocks)
        enough_rows = row_tiles(n) >= self.share
        enough_groups = k // GROUP_SIZE >= self.split
        return enough_rows and enough_groups and self.shared_bytes(m, n, k, gpu) <= most

    def plan(self, m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan:
        defines = (
            f"W4_NT={self.tokens // 8}",
            f"W4_WARPS={self.warps}",
            f"W4_SHARE={self.share}",
            f"W4_SPLIT={self.split}",
            f"W4_CHUNK={self.chunk}",
            f"W4_DEPTH={self.depth}",
            f"W4_BLOCKS={self.blocks}",
        )
        return LaunchPlan(
            kernel="decode",
            program=Program(stem="w4_decode", defines=defines),
            entry="w4_decode_kernel",
            shape=LaunchShape(
                grid=(self.blocks_of(n, gpu) * self.split, 1, 1),
                block=(32 * (self.warps + 2), 1, 1),
                shared_bytes=self.shared_bytes(m, n, k, gpu),
                cluster=self.share * self.split,
                overlap=True,
            ),
            operands=("codes", "params", "x", "bias", "y"),
            extra=(0,),
        )


@dataclass(frozen=True, kw_only=True)
class WideInstance:
    """The macros of w4_decode_wide.cu; split: blocks of a cluster, each with a part of K."""

    tokens: int
    groups: int
    split: int
    depth: int
    blocks: int
    chunk: int = 2
    buffers: int = 2

    def fixed_bytes(self) -> int:
        """Shared memory besides x: the ring, the peers' sums and the barriers."""
        warps = 4 * self.groups
        ring = self.depth * self.chunk * warps * _TILE_BYTES
        units = self.tokens // 4
        owned = units // min(units, self.split)
        peers = warps * self.split * owned * 256 if self.split > 1 else 0
        return ring + peers + 16 * self.depth + 16 * _MOST_X_STAGES + 16 * warps

    def plan(self, n: int, k: int, gpu: GpuModel) -> LaunchPlan:
        """With as many stages of x as shared memory holds, at most one for each group."""
        stage = self.tokens * _GROUP_X_BYTES
        room = (gpu.shared_bytes_a_block(self.blocks) - self.fixed_bytes()) // stage
        stages = min(ceil_div(k // GROUP_SIZE, self.split), room, _MOST_X_STAGES)
        defines = (
            f"W4_TOKENS={self.tokens}",
            f"W4_GROUPS={self.groups}",
            f"W4_BUFFERS={self.buffers}",
            f"W4_SPLIT={self.split}",
            f"W4_CHUNK={self.chunk}",
            f"W4_DEPTH={self.depth}",
            f"W4_BLOCKS={self.blocks}",
        )
        clusters = min(row_tiles(n), _LARGEST_GRID // self.split)
        return LaunchPlan(
            kernel="decode wide",
            program=Program(stem="w4_decode_wide", defines=defines),
            entry="w4_decode_wide_kernel",
            shape=LaunchShape(
                grid=(clusters * self.split, 1, 1),
                block=(128 * self.groups + 64, 1, 1),
                shared_bytes=self.fixed_bytes() + stages * stage,
                cluster=self.split,
                overlap=True,
            ),
            operands=("x_map", "codes", "params", "bias", "y"),
            extra=(stages,),
            boxes=Boxes(tokens=self.tokens, inputs=64),
        )


@dataclass(frozen=True, kw_only=True)
class PortableInstance:
    """The macros of w4_decode_portable.cu."""

    tokens: int
    warps: int = 8
    depth: int = 4

    def shared_bytes(self, m: int, k: int) -> int:
        """Partial sums, rings and x of every warp."""
        groups = ceil_div(k // GROUP_SIZE, self.warps)
        x_bytes = m * (groups * _GROUP_X_BYTES + 16)
        return self.warps * (160 * self.tokens + _TILE_BYTES * self.depth + x_bytes)

    def plan(self, m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan:
        shared_bytes = self.shared_bytes(m, k)
        resident = gpu.multiprocessors * min(gpu.blocks_that_fit(shared_bytes), _MOST_RESIDENT)
        defines = (
            f"W4_NT={self.tokens // 8}",
            f"W4_WARPS={self.warps}",
            f"W4_DEPTH={self.depth}",
        )
        return LaunchPlan(
            kernel="decode portable",
            program=Program(stem="w4_decode_portable", defines=defines),
            entry="w4_decode_portable_kernel",
            shape=LaunchShape(
                grid=(min(resident, row_tiles(n)), 1, 1),
                block=(32 * self.warps, 1, 1),
                shared_bytes=shared_bytes,
            ),
            operands=("codes", "params", "x", "bias", "y"),
            extra=(),
        )


#: Of the portable kernel on one multiprocessor: registers allow no more.
_MOST_RESIDENT = 2

#: In the order in which they are tried: alone while x is small, then with x fetched for two blocks,
#: then with half of a long x each.
_NARROW = tuple(
    instance
    for tokens in (8, 16)
    for instance in (
        DecodeInstance(tokens=tokens, depth=3, blocks=2),
        DecodeInstance(tokens=tokens, depth=3, blocks=1, share=2),
        DecodeInstance(tokens=tokens, depth=2, blocks=1, share=2),
        DecodeInstance(tokens=tokens, depth=3, blocks=1, split=2),
    )
)
#: For matrices with many rows, which need no split, and for others.
_TALL = tuple(
    WideInstance(tokens=tokens, groups=4, split=1, depth=3, blocks=1) for tokens in (16, 32, 64)
)
_WIDE = tuple(
    WideInstance(tokens=tokens, groups=2, split=2, depth=depth, blocks=1)
    for tokens, depth in ((16, 6), (32, 6), (64, 6))
)
_TALL_ROWS = 16384
_PORTABLE = tuple(PortableInstance(tokens=tokens) for tokens in (8, 16, 32))
MOST_TOKENS = _WIDE[-1].tokens


def plan_decode(m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan:
    """For 1 to MOST_TOKENS tokens on sm_90a."""
    for narrow in _NARROW:
        if m <= narrow.tokens and narrow.fits(m, n, k, gpu):
            return narrow.plan(m, n, k, gpu)
    instances = _TALL if n >= _TALL_ROWS else _WIDE
    return next(wide for wide in instances if m <= wide.tokens).plan(n, k, gpu)


def plan_portable(m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan | None:
    """For few tokens on any architecture; None where x has no room, or there are too many."""
    for portable in _PORTABLE:
        if m <= portable.tokens and gpu.blocks_that_fit(portable.shared_bytes(m, k)):
            return portable.plan(m, n, k, gpu)
    return None
