"""Launches of the kernels for many tokens: w4_prefill.cu, and w4_mma.cu on any architecture."""

from __future__ import annotations

from dataclasses import dataclass

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.launch_plan import (
    Boxes,
    GpuModel,
    LaunchPlan,
    TimedPlan,
    ceil_div,
)
from awqkit_runtime.kernels.w4_prefill_choice import choose_variant

#: A last round of tiles fuller than this is as well left alone as shared out along K.
_FULL_ROUND = 0.88
_FLOAT = 4
_ROWS = 128


def plan_prefill(m: int, n: int, k: int, gpu: GpuModel) -> TimedPlan:
    """w4_prefill.cu: wgmma, fed by tensor maps; only for sm_90a."""
    choice = choose_variant(m, n, k, gpu)
    variant, stream_tiles = choice.variant, choice.stream_tiles
    whole = variant.split == 1
    workers = choice.workers if whole else variant.tiles(m, n)
    blocks = workers * variant.cluster * variant.split
    plan = LaunchPlan(
        kernel="batch" if variant.scale_sums else "prefill",
        program=Program(stem="w4_prefill", defines=variant.defines),
        entry="w4_prefill_linear",
        shape=LaunchShape(
            grid=(blocks, 1, 1),
            block=(variant.threads, 1, 1),
            shared_bytes=variant.shared_bytes,
            overlap=True,
        ),
        operands=("x_map", "codes_map", "params_map", "bias", "y", "workspace", "flags"),
        extra=(_band(m, k, variant.tokens), stream_tiles),
        boxes=Boxes(
            tokens=variant.tokens // variant.cluster,
            inputs=64,
            row_tiles=variant.row_tiles,
            code_inputs=variant.stage_inputs,
        ),
        workspace_bytes=blocks * variant.rows * variant.tokens * _FLOAT if whole else 0,
        flags=blocks * variant.consumers if whole else 0,
    )
    return TimedPlan(plan=plan, cycles=choice.cycles)


def plan_mma(m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan:
    """w4_mma.cu: mma.sync, for every architecture."""
    tokens, stages = (64, 4) if m <= 64 else (128, 3)
    shared_bytes = stages * (128 * tokens + 4608)
    workers = gpu.multiprocessors * min(2, gpu.blocks_that_fit(shared_bytes))
    tiles = _Tiles(rows=ceil_div(n, _ROWS), tokens=ceil_div(m, tokens), workers=workers)
    return LaunchPlan(
        kernel="mma",
        program=Program(stem="w4_mma", defines=(f"W4_TOKENS={tokens}", f"W4_STAGES={stages}")),
        entry="w4_mma_linear",
        shape=LaunchShape(
            grid=(workers, 1, 1), block=(256, 1, 1), shared_bytes=shared_bytes, overlap=True
        ),
        operands=("x", "codes", "params", "bias", "y", "workspace", "flags"),
        extra=(_band(m, k, tokens), tiles.shared_along_k(k)),
        workspace_bytes=workers * _ROWS * tokens * _FLOAT,
        flags=workers,
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
    most = 8 if tokens * k <= 2**21 else 4
    return min(most, ceil_div(m, tokens))
