"""Launches of w4_stationary.cu: up to sixteen tokens on sm_90a."""

from __future__ import annotations

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.launch_plan import GpuModel, LaunchPlan, TimedPlan, ceil_div
from awqkit_runtime.kernels.w4_tiles import row_tiles

#: One token was faster with the decode kernel in the order of a block: 38.0 µs, not 39.1.
_TOKENS = range(2, 9)
#: Of a row: with fewer half of what a warp could hold is empty.
_GROUPS = range(17, 33)

_STAGES = 6
#: Groups of a row tile that a block's warps hold the inputs of, and slices of more.
_TILE_GROUPS = 32
_REDUCERS = 2
_STAGE_BYTES = _TILE_GROUPS * (1024 + 64)
_SUM_BYTES = _REDUCERS * 8192
#: Tickets; sums of slices lie behind them.
_TICKETS = 32

#: Of a launch, and what each token adds; less than a launch by itself takes, since in the order of
#: a block it was faster than this says. A row tile takes what memory needs for its groups.
_LAUNCH_CYCLES, _TOKEN_CYCLES, _GROUP_CYCLES = 3600, 198, 59.6


def plan_stationary(m: int, n: int, k: int, gpu: GpuModel) -> TimedPlan | None:
    """None where the kernel takes no such shape, or was not seen to be fast with it."""
    groups = k // GROUP_SIZE
    if m not in _TOKENS or groups not in _GROUPS:
        return None
    plan = stationary_launch(m, n, k, gpu)
    row_groups = row_tiles(n) / plan.shape.grid[0] * groups
    cycles = _LAUNCH_CYCLES + _TOKEN_CYCLES * m + row_groups * _GROUP_CYCLES
    return TimedPlan(plan=plan, cycles=cycles)


def stationary_launch(m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan:
    """m: at most 16. k: at most 32,768, cut into slices where it is more than 4,096."""
    tokens = 8 if m <= 8 else 16
    slices = ceil_div(k // GROUP_SIZE, _TILE_GROUPS)
    warps = 16 if tokens == 8 else 8
    sums = row_tiles(n) * slices * 16 * tokens if slices > 1 else 0
    return LaunchPlan(
        kernel="stationary",
        program=Program(
            stem="w4_stationary", defines=(f"W4_TOKENS={tokens}", f"W4_STAGES={_STAGES}")
        ),
        entry="w4_stationary_kernel",
        shape=LaunchShape(
            grid=(min(gpu.multiprocessors, row_tiles(n) * slices), 1, 1),
            block=(32 * (warps + 4), 1, 1),
            shared_bytes=_shared_bytes(),
            overlap=True,
        ),
        operands=("codes", "params", "x", "bias", "y", "flags"),
        extra=(slices,),
        flags=_TICKETS + sums,
    )


def _shared_bytes() -> int:
    """Barriers and row tiles, sums, the ring."""
    barriers = ceil_div(20 * _STAGES + 20 * _REDUCERS, 128) * 128
    return barriers + _SUM_BYTES + _STAGES * _STAGE_BYTES
