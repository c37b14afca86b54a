"""Launches of the kernels for few tokens: w4_decode.cu and w4_decode_wide.cu, from sm_90 on."""

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


def plan_decode(m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan:
    """For 1 to MOST_TOKENS tokens."""
    if m <= _NARROW.tokens:
        narrow = _NARROW.plan(m, n, k, gpu)
        if narrow.shape.shared_bytes <= gpu.shared_bytes_a_block(1):
            return narrow
    wide = next(instance for instance in _WIDE if m <= instance.tokens)
    return wide.plan(n, k, gpu)


@dataclass(frozen=True, kw_only=True)
class DecodeInstance:
    """The macros of w4_decode.cu; blocks: on one multiprocessor at once."""

    tokens: int
    warps: int
    chunk: int
    depth: int
    blocks: int

    def shared_bytes(self, m: int, k: int) -> int:
        """As the kernel lays it out: barriers, partial sums, the ring, x."""
        barriers = ceil_div(16 * self.depth + 40, 128) * 128
        partial_sums = 2 * self.warps * self.tokens * 80
        ring = self.depth * self.warps * self.chunk * _TILE_BYTES
        return barriers + partial_sums + ring + m * (k // GROUP_SIZE * _GROUP_X_BYTES + 16)

    def plan(self, m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan:
        defines = (
            f"W4_NT={self.tokens // 8}",
            f"W4_WARPS={self.warps}",
            "W4_SHARE=1",
            f"W4_CHUNK={self.chunk}",
            f"W4_DEPTH={self.depth}",
            f"W4_BLOCKS={self.blocks}",
            "W4_EXACT=1",
        )
        grid = min(row_tiles(n), gpu.multiprocessors)
        return LaunchPlan(
            kernel="decode",
            program=Program(stem="w4_decode", defines=defines),
            entry="w4_decode_kernel",
            shape=LaunchShape(
                grid=(grid, 1, 1),
                block=(32 * (self.warps + 2), 1, 1),
                shared_bytes=self.shared_bytes(m, k),
                overlap=True,
            ),
            operands=("codes", "params", "x", "bias", "y"),
            extra=(0,),
        )


@dataclass(frozen=True, kw_only=True)
class WideInstance:
    """The macros of w4_decode_wide.cu; split: blocks of a cluster, each with a share of K."""

    tokens: int
    groups: int
    split: int
    chunk: int
    depth: int
    blocks: int
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
        most = gpu.shared_bytes_a_block(self.blocks)
        stage = self.tokens * _GROUP_X_BYTES
        groups = ceil_div(k // GROUP_SIZE, self.split)
        stages = min(groups, (most - self.fixed_bytes()) // stage, _MOST_X_STAGES)
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


_NARROW = DecodeInstance(tokens=8, warps=16, chunk=1, depth=4, blocks=2)
_WIDE = tuple(
    WideInstance(tokens=tokens, groups=2, split=2, chunk=2, depth=3, blocks=1)
    for tokens in (8, 16, 32, 64)
)
MOST_TOKENS = _WIDE[-1].tokens
