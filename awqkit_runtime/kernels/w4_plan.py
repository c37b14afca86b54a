"""Which CUDA kernel computes a 4-bit linear, with which launch: one pure function of the shape.

The kernels of csrc/cuda that it chooses from say in their heads what the numbers mean.
"""

from __future__ import annotations

from functools import cache

from awqkit_runtime.kernels.launch_plan import MULTIPROCESSORS, GpuModel, LaunchPlan
from awqkit_runtime.kernels.w4_decode_plan import plan_decode, plan_portable
from awqkit_runtime.kernels.w4_prefill_plan import plan_mma, plan_prefill
from awqkit_runtime.kernels.w4_stationary_plan import plan_stationary

__all__ = ["MULTIPROCESSORS", "GpuModel", "LaunchPlan", "all_plans", "plan_w4_linear"]

#: The only architecture with wgmma.
_WGMMA = "sm_90a"
#: Tiles hold multiples of 32 tokens, and beyond these plans differ in numbers alone.
_MANY_TOKENS = (*range(32, 8193, 32), 16384)


@cache
def plan_w4_linear(m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan:
    """How x [m, k] · Wᵀ [k, n] runs on a GPU. m ≥ 1; n a multiple of 8, k of 128."""
    if gpu.arch == _WGMMA:
        few = (plan_decode(m, n, k, gpu), plan_stationary(m, n, k, gpu))
        timed = (*(plan for plan in few if plan), plan_prefill(m, n, k, gpu))
        return min(timed, key=lambda plan: plan.cycles).plan
    return plan_portable(m, n, k, gpu) or plan_mma(m, n, k, gpu)


def all_plans(n: int, k: int, gpu: GpuModel) -> list[LaunchPlan]:
    """One plan for every program and launch shape that this weight may ever need."""
    plans = (plan_w4_linear(m, n, k, gpu) for m in (*range(1, 129), *_MANY_TOKENS))
    return list({(plan.program, plan.shape): plan for plan in plans}.values())
