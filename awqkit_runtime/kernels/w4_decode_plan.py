"""Launches of the kernels for few tokens: w4_decode.cu and w4_decode_portable.cu.

Which instance is fastest for which shape was measured on an H200; see docs/kernel_log.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.launch_plan import GpuModel, LaunchPlan, TimedPlan, ceil_div
from awqkit_runtime.kernels.w4_tiles import row_tiles

#: Codes and parameters of 16 rows and one group.
_TILE_BYTES = 1024 + 64
#: Of x in one group of inputs, for one token.
_GROUP_X_BYTES = 2 * GROUP_SIZE


@dataclass(frozen=True, kw_only=True)
class DecodeInstance:
    """The macros of w4_decode.cu, for up to `tokens` tokens.

    blocks: on one multiprocessor at once, where shared memory has room for them. The cycles: of a
    launch; of a row tile's group in each of two blocks of a multiprocessor, and what each further
    token adds to it; of each number of x.
    """

    tokens: int
    depth: int
    blocks: int
    warps: int
    chunk: int
    launch_cycles: int
    tile_cycles: float
    token_cycles: float
    x_cycles: float

    def shared_bytes(self, m: int, k: int) -> int:
        """As the kernel lays it out: barriers, partial sums, the ring, x."""
        barriers = ceil_div(16 * self.depth + 40, 128) * 128
        partial_sums = 1280 * self.warps * self.tokens // 8
        ring = self.depth * self.warps * self.chunk * _TILE_BYTES
        return barriers + partial_sums + ring + m * (k // GROUP_SIZE * _GROUP_X_BYTES + 16)

    def grid(self, m: int, n: int, k: int, gpu: GpuModel) -> int:
        """Blocks; none where shared memory has no room."""
        return min(gpu.multiprocessors * self._resident(m, k, gpu), row_tiles(n))

    def plan(self, m: int, n: int, k: int, gpu: GpuModel) -> TimedPlan:
        defines = (
            f"W4_NT={self.tokens // 8}",
            f"W4_WARPS={self.warps}",
            f"W4_CHUNK={self.chunk}",
            f"W4_DEPTH={self.depth}",
            f"W4_BLOCKS={self.blocks}",
        )
        plan = LaunchPlan(
            kernel="decode",
            program=Program(stem="w4_decode", defines=defines),
            entry="w4_decode_kernel",
            shape=LaunchShape(
                grid=(self.grid(m, n, k, gpu), 1, 1),
                block=(32 * (self.warps + 2), 1, 1),
                shared_bytes=self.shared_bytes(m, k),
                overlap=True,
            ),
            operands=("codes", "params", "x", "bias", "y"),
            extra=(),
        )
        return TimedPlan(plan=plan, cycles=self._cycles(m, n, k, gpu))

    def _resident(self, m: int, k: int, gpu: GpuModel) -> int:
        return min(gpu.blocks_that_fit(self.shared_bytes(m, k)), self.blocks)

    def _cycles(self, m: int, n: int, k: int, gpu: GpuModel) -> float:
        blocks = self.grid(m, n, k, gpu)
        group = self.tile_cycles + self.token_cycles * (m - 1)
        launch = self.launch_cycles
        if self._resident(m, k, gpu) < self.blocks:
            group *= _FULL_BLOCK
            launch += _FULL_LAUNCH_CYCLES
        elif blocks <= gpu.multiprocessors:
            group *= _LONE_BLOCK
        groups = row_tiles(n) / blocks * (k // GROUP_SIZE)
        return launch + groups * group + m * k * self.x_cycles


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

#: A group's cycles in a block that has a multiprocessor to itself, against one of two.
_LONE_BLOCK = 0.7
#: The same where x leaves no room for a second block, and what such a launch costs more: the next
#: kernel finds no room either before it ends.
_FULL_BLOCK, _FULL_LAUNCH_CYCLES = 0.52, 300

_DECODE = DecodeInstance(
    tokens=8,
    depth=3,
    blocks=2,
    warps=8,
    chunk=2,
    launch_cycles=4280,
    tile_cycles=119.2,
    token_cycles=2.67,
    x_cycles=0.074,
)
_PORTABLE = tuple(PortableInstance(tokens=tokens) for tokens in (8, 16, 32))


def plan_decode(m: int, n: int, k: int, gpu: GpuModel) -> TimedPlan | None:
    """For few tokens on sm_90a; None where x has no room, or there are too many tokens."""
    if m <= _DECODE.tokens and _DECODE.grid(m, n, k, gpu):
        return _DECODE.plan(m, n, k, gpu)
    return None


def plan_portable(m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan | None:
    """For few tokens on any architecture; None as above."""
    for portable in _PORTABLE:
        if m <= portable.tokens and gpu.blocks_that_fit(portable.shared_bytes(m, k)):
            return portable.plan(m, n, k, gpu)
    return None
