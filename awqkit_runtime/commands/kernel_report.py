"""What `awqkit-runtime plan --kernels` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from awqkit_runtime.kernel_plan import MOST_TOKENS, LinearShape, PlannedRange, planned_ranges
from awqkit_runtime.kernels.w4_plan import MULTIPROCESSORS, GpuModel
from awqkit_runtime.units import human_bytes

DEFAULT_ARCH = "sm_90a"


def gpu_to_plan_for(arch: str | None) -> GpuModel:
    """A usual card of this architecture; without one this machine's GPU, if it has one."""
    import torch

    if arch is None and torch.cuda.is_available():
        from awqkit_runtime.kernels.w4_tiled_linear import gpu_model

        return gpu_model(torch.device("cuda", torch.cuda.current_device()))
    arch = arch or DEFAULT_ARCH
    return GpuModel(arch=arch, multiprocessors=MULTIPROCESSORS[arch])


def show_kernels(linears: Sequence[LinearShape], gpu: GpuModel) -> None:
    """Print a table for each shape."""
    console = Console()
    if not linears:
        console.print("The model has no 4-bit linears, so none of these kernels runs.")
    for linear in linears:
        times = f", {linear.count} times" if linear.count > 1 else ""
        title = (
            f"{linear.name}: {linear.in_features} → {linear.out_features}{times}, "
            f"{gpu.arch}, {gpu.multiprocessors} multiprocessors"
        )
        console.print(_table(title, planned_ranges(linear.out_features, linear.in_features, gpu)))


def _table(title: str, ranges: Sequence[PlannedRange]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for column in ("tokens", "kernel", "variant", "grid", "block", "shared", "workspace"):
        table.add_column(column, justify="left" if column in ("kernel", "variant") else "right")
    for entry in ranges:
        plan = entry.plan
        table.add_row(
            _tokens(entry),
            plan.kernel,
            " ".join(define.removeprefix("W4_") for define in plan.program.defines),
            str(plan.shape.grid[0]),
            str(plan.shape.block[0]),
            human_bytes(plan.shape.shared_bytes),
            human_bytes(plan.workspace_bytes) if plan.workspace_bytes else "",
        )
    return table


def _tokens(entry: PlannedRange) -> str:
    if entry.last == MOST_TOKENS:
        return f"{entry.first}…"
    return str(entry.first) if entry.first == entry.last else f"{entry.first}…{entry.last}"


def as_document(linears: Sequence[LinearShape], gpu: GpuModel) -> dict[str, Any]:
    """The same as JSON holds it."""
    return {
        "gpu": asdict(gpu),
        "linears": [
            asdict(linear)
            | {
                "plans": [
                    asdict(entry)
                    for entry in planned_ranges(linear.out_features, linear.in_features, gpu)
                ]
            }
            for linear in linears
        ],
    }
