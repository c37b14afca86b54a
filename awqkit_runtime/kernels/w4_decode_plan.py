"""Launches of the kernels for few tokens: w4_decode.cu and w4_decode_portable.cu.

Which instance is fastest for which shape was measured on an H200; see docs/kernel_log.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.launch_plan import GpuModel, LaunchPlan, ceil_div
from awqkit_runtime.kernels.w4_tiles import row_tiles

#: Codes and parameters of 16 rows and one group.
_TILE_BYTES = 1024 + 64
#: Of x in one group of inputs, for one token.
_GROUP_X_BYTES = 2 * GROUP_SIZE


@dataclass(frozen=True, kw_only=True)
class DecodeInstance:
    """The macros of w4_decode.cu, for up to `tokens` tokens; no clusters.

    blocks: on one multiprocessor at once, where shared memory has room for them.
    """

    tokens: int
    depth: int
    blocks: int
    warps: int = 8
    chunk: int = 2

    def shared_bytes(self, m: int, k: int) -> int:
        """As the kernel lays it out: barriers, partial sums, the ring, x."""
        barriers = ceil_div(16 * self.depth + 40, 128) * 128
        partial_sums = 1280 * self.warps * self.tokens // 8
        ring = self.depth * self.warps * self.chunk * _TILE_BYTES
        return barriers + partial_sums + ring + m * (k // GROUP_SIZE * _GROUP_X_BYTES + 16)

    def plan(self, m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan:
        shared_bytes = self.shared_bytes(m, k)
        resident = gpu.multiprocessors * min(gpu.blocks_that_fit(shared_bytes), self.blocks)
        defines = (
            f"W4_NT={self.tokens // 8}",
            f"W4_WARPS={self.warps}",
            "W4_SHARE=1",
            f"W4_CHUNK={self.chunk}",
            f"W4_DEPTH={self.depth}",
            f"W4_BLOCKS={self.blocks}",
        )
        return LaunchPlan(
            kernel="decode",
            program=Program(stem="w4_decode", defines=defines),
            entry="w4_decode_kernel",
            shape=LaunchShape(
                grid=(min(resident, row_tiles(n)), 1, 1),
                block=(32 * (self.warps + 2), 1, 1),
                shared_bytes=shared_bytes,
                overlap=True,
            ),
            operands=("codes", "params", "x", "bias", "y"),
            extra=(0,),
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

_NARROW = (
    DecodeInstance(tokens=8, depth=3, blocks=2),
    DecodeInstance(tokens=16, depth=3, blocks=2),
)
_PORTABLE = tuple(PortableInstance(tokens=tokens) for tokens in (8, 16, 32))


def plan_decode(m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan | None:
    """For few tokens on sm_90a; None where x has no room, or there are too many tokens."""
    for narrow in _NARROW:
        if m <= narrow.tokens and gpu.blocks_that_fit(narrow.shared_bytes(m, k)):
            return narrow.plan(m, n, k, gpu)
    return None


def plan_portable(m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan | None:
    """As plan_decode, on any architecture."""
    for portable in _PORTABLE:
        if m <= portable.tokens and gpu.blocks_that_fit(portable.shared_bytes(m, k)):
            return portable.plan(m, n, k, gpu)
    return None
