"""Launches of w4_stationary.cu: two to eight tokens on sm_90a."""

from __future__ import annotations

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.launch_plan import GpuModel, LaunchPlan, TimedPlan, ceil_div
from awqkit_runtime.kernels.w4_tiles import row_tiles

#: With one token the decode kernel is as fast in the order of a block.
_TOKENS = range(2, 9)
#: Of a row: more do not fit the registers, and with fewer half of what a warp could hold is empty.
_GROUPS = range(17, 33)

_STAGES = 6
_WARPS, _REDUCERS = 16, 2
_THREADS = 32 * (_WARPS + 4)
_STAGE_BYTES = 2 * _WARPS * (1024 + 64)
_SUM_BYTES = _REDUCERS * _WARPS * 512

#: Of a launch, what each token adds, and of a row tile's group: less than memory needs for it,
#: since the first ones of a block flow before its inputs come.
_LAUNCH_CYCLES, _TOKEN_CYCLES, _GROUP_CYCLES = 4450, 170, 54.0


def plan_stationary(m: int, n: int, k: int, gpu: GpuModel) -> TimedPlan | None:
    """None where the kernel takes no such shape, or was not seen to be fast with it."""
    groups = k // GROUP_SIZE
    if m not in _TOKENS or groups not in _GROUPS:
        return None
    plan = LaunchPlan(
        kernel="stationary",
        program=Program(stem="w4_stationary", defines=(f"W4_STAGES={_STAGES}",)),
        entry="w4_stationary_kernel",
        shape=LaunchShape(
            grid=(min(gpu.multiprocessors, row_tiles(n)), 1, 1),
            block=(_THREADS, 1, 1),
            shared_bytes=_shared_bytes(),
            overlap=True,
        ),
        operands=("codes", "params", "x", "bias", "y", "flags"),
        extra=(),
        flags=1,
    )
    row_groups = row_tiles(n) / plan.shape.grid[0] * groups
    cycles = _LAUNCH_CYCLES + _TOKEN_CYCLES * m + row_groups * _GROUP_CYCLES
    return TimedPlan(plan=plan, cycles=cycles)


def _shared_bytes() -> int:
    """Barriers and row tiles, sums, the ring."""
    barriers = ceil_div(20 * _STAGES + 20 * _REDUCERS, 128) * 128
    return barriers + _SUM_BYTES + _STAGES * _STAGE_BYTES
