"""Launches of w4_stationary.cu: two to eight tokens on sm_90a."""

from __future__ import annotations

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.launch_plan import GpuModel, LaunchPlan, TimedPlan, ceil_div
from awqkit_runtime.kernels.w4_prefill_choice import clusters_that_fit
from awqkit_runtime.kernels.w4_tiles import row_tiles

#: With one token the decode kernel is as fast in the order of a block.
_TOKENS = range(2, 9)
#: Groups of a slice: more do not fit the registers, and with fewer half of what a warp could hold
#: is empty.
_GROUPS = range(17, 33)
#: Of a row: none, or one for each block of a cluster.
_SLICES = (1, 4)

_STAGES = 6
_WARPS, _REDUCERS = 16, 2
_THREADS = 32 * (_WARPS + 4)
_STAGE_BYTES = 2 * _WARPS * (1024 + 64)
_SUM_BYTES = 512
#: Row tiles that a block of a cluster may end.
_SLOTS = 3
#: Of a block with so few row tiles the late ones wait for the inputs: memory may rest.
_FEW_TILES = 3

#: Of a launch, what each token adds, and of a row tile's group: less than memory needs for it,
#: since the first ones of a block flow before its inputs come.
_LAUNCH_CYCLES, _TOKEN_CYCLES, _GROUP_CYCLES = 4450, 170, 54.0
#: What slices add to a launch.
_SLICED_CYCLES = 2300


def plan_stationary(m: int, n: int, k: int, gpu: GpuModel) -> TimedPlan | None:
    """None where the kernel takes no such shape, or was not seen to be fast with it."""
    slices = next((s for s in _SLICES if ceil_div(k // GROUP_SIZE, s) in _GROUPS), None)
    if m not in _TOKENS or slices is None:
        return None
    workers = gpu.multiprocessors if slices == 1 else clusters_that_fit(slices, gpu.multiprocessors)
    workers = min(workers, row_tiles(n))
    if slices > 1 and row_tiles(n) > workers * slices * _SLOTS:
        return None
    plan = LaunchPlan(
        kernel="stationary",
        program=_program(slices, ceil_div(row_tiles(n), workers)),
        entry="w4_stationary_kernel",
        shape=LaunchShape(
            grid=(workers * slices, 1, 1),
            block=(_THREADS, 1, 1),
            shared_bytes=_shared_bytes(slices),
            overlap=True,
        ),
        operands=("codes", "params", "x", "bias", "y", "flags"),
        extra=(),
        flags=1,
    )
    groups = row_tiles(n) / workers * ceil_div(k // GROUP_SIZE, slices)
    cycles = _LAUNCH_CYCLES + _TOKEN_CYCLES * m + groups * _GROUP_CYCLES
    return TimedPlan(plan=plan, cycles=cycles + (_SLICED_CYCLES if slices > 1 else 0))


def _program(slices: int, block_tiles: int) -> Program:
    """block_tiles: row tiles of a block."""
    few = slices == 1 and block_tiles <= _FEW_TILES
    early = 2 if few or slices > 1 else 3
    defines = {"STAGES": _STAGES, "SLICES": slices, "EARLY": early, "INPUTS_FIRST": int(few)}
    return Program(
        stem="w4_stationary", defines=tuple(f"W4_{name}={n}" for name, n in defines.items())
    )


def _shared_bytes(slices: int) -> int:
    """Barriers and row tiles, sums of warps and of slices, the ring."""
    slots = _SLOTS if slices > 1 else 0
    barriers = ceil_div(20 * _STAGES + 20 * _REDUCERS + 8 * slots + 8, 128) * 128
    sums = (_REDUCERS * _WARPS + slots * slices) * _SUM_BYTES
    return barriers + sums + _STAGES * _STAGE_BYTES
