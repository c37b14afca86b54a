"""Which CUDA kernel computes a 4-bit linear, with which launch: one pure function of the shape.

The kernels of csrc/cuda that it chooses from say in their heads what the numbers mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program

#: Multiprocessors of a usual card of each architecture that we name.
MULTIPROCESSORS = {"sm_80": 108, "sm_89": 128, "sm_90a": 132, "sm_100a": 148}
#: Shared memory of a multiprocessor (CUDA C++ Programming Guide, technical specifications), and
#: what each block on it takes besides its own.
SHARED_BYTES = {
    **{"sm_80": 164 * 2**10, "sm_86": 100 * 2**10, "sm_87": 164 * 2**10, "sm_89": 100 * 2**10},
    **{"sm_90a": 228 * 2**10, "sm_100a": 228 * 2**10, "sm_103a": 228 * 2**10},
    **{"sm_120a": 100 * 2**10, "sm_121a": 100 * 2**10},
}
_BLOCK_OVERHEAD = 2**10
_WGMMA = "sm_90a"

#: What one band of a raster keeps in L2 of the activations.
_BAND_BYTES = 32 * 2**20
#: A last round of tiles fuller than this is as well left alone as shared out along K.
_FULL_ROUND = 0.88
_FLOAT = 4
#: Beyond these plans differ in numbers alone.
_MANY_TOKENS = (1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, kw_only=True)
class GpuModel:
    """arch: as NVRTC spells it. multiprocessors: of the whole card."""

    arch: str
    multiprocessors: int


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """What one copy through a tensor map brings: tokens × inputs of x, row tiles of the weight."""

    tokens: int
    inputs: int
    row_tiles: int


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """One launch. workspace_bytes and flags (32-bit, zero) are shared by all launches in a stream.

    extra: what the kernel takes after m, n and k. boxes: if it reads through tensor maps.
    """

    kernel: str
    program: Program
    entry: str
    shape: LaunchShape
    workspace_bytes: int = 0
    flags: int = 0
    extra: tuple[int, ...] = ()
    boxes: Boxes | None = None


@cache
def plan_w4_linear(m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan:
    """How x [m, k] · Wᵀ [k, n] runs on a GPU. m ≥ 1; n a multiple of 8, k of 128."""
    if gpu.arch == _WGMMA:
        return _prefill(m, n, k, gpu)
    return _mma(m, n, k, gpu)


def all_plans(n: int, k: int, gpu: GpuModel) -> list[LaunchPlan]:
    """One plan for every program and launch shape that this weight may ever need."""
    plans = (plan_w4_linear(m, n, k, gpu) for m in (*range(1, 513), *_MANY_TOKENS))
    return list({(plan.program, plan.shape): plan for plan in plans}.values())


def _prefill(m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan:
    """w4_prefill.cu: wgmma, fed by tensor maps; only for sm_90a."""
    tokens, row_blocks, cluster, stages = _prefill_instance(m)
    workers = gpu.multiprocessors // cluster
    tiles = _Tiles(
        rows=_ceil(n, 128 * row_blocks * cluster), tokens=_ceil(m, tokens), workers=workers
    )
    defines = (
        f"W4_TOKENS={tokens}",
        f"W4_ROW_BLOCKS={row_blocks}",
        f"W4_CLUSTER={cluster}",
        f"W4_STAGES={stages}",
    )
    shape = LaunchShape(
        grid=(cluster * workers, 1, 1),
        block=(384, 1, 1),
        shared_bytes=stages * (128 * tokens + 4608 * row_blocks) + 16384 + 1024 + 256,
        overlap=True,
    )
    return LaunchPlan(
        kernel="prefill",
        program=Program(stem="w4_prefill", defines=defines),
        entry="w4_prefill_linear",
        shape=shape,
        workspace_bytes=2 * shape.grid[0] * 128 * row_blocks * tokens * _FLOAT,
        flags=shape.grid[0] * 2,
        extra=(_band(m, k, tokens), tiles.shared_along_k(k)),
        boxes=Boxes(tokens=tokens // cluster, inputs=64, row_tiles=8 * row_blocks),
    )


def _prefill_instance(m: int) -> tuple[int, int, int, int]:
    """Tokens, row blocks, cluster and stages."""
    if m <= 64:
        return 64, 1, 1, 8
    if m <= 128:
        return 128, 1, 1, 6
    return 256, 1, 2, 5


def _mma(m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan:
    """w4_mma.cu: mma.sync, for every architecture."""
    tokens, stages = (64, 4) if m <= 64 else (128, 3)
    shared_bytes = stages * (128 * tokens + 4608)
    two_fit = 2 * (shared_bytes + _BLOCK_OVERHEAD) <= SHARED_BYTES.get(gpu.arch, 0)
    workers = gpu.multiprocessors * (2 if two_fit else 1)
    tiles = _Tiles(rows=_ceil(n, 128), tokens=_ceil(m, tokens), workers=workers)
    return LaunchPlan(
        kernel="mma",
        program=Program(stem="w4_mma", defines=(f"W4_TOKENS={tokens}", f"W4_STAGES={stages}")),
        entry="w4_mma_linear",
        shape=LaunchShape(
            grid=(workers, 1, 1), block=(256, 1, 1), shared_bytes=shared_bytes, overlap=True
        ),
        workspace_bytes=workers * 128 * tokens * _FLOAT,
        flags=workers,
        extra=(_band(m, k, tokens), tiles.shared_along_k(k)),
    )


@dataclass(frozen=True, kw_only=True)
class _Tiles:
    """The output's tiles, and the workers that share them out."""

    rows: int
    tokens: int
    workers: int

    def shared_along_k(self, k: int) -> int:
        """How many tiles are cut along K so that the last round is as full as the others."""
        count = self.rows * self.tokens
        left = count % self.workers
        several = count > self.workers
        full_enough = several and left > _FULL_ROUND * self.workers
        too_few = count * (k // GROUP_SIZE) < self.workers
        if left == 0 or full_enough or too_few:
            return 0
        return left + (self.workers if several else 0)


def _band(m: int, k: int, tokens: int) -> int:
    """Token tiles that run before the next ones begin, so that they find x in L2."""
    return max(1, min(_BAND_BYTES // (tokens * k * 2), _ceil(m, tokens)))


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
