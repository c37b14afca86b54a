"""A linear with 4-bit weights in tiles and BF16 activations, on CUDA."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from awqkit_runtime.kernels.cuda.compiler import compile_programs
from awqkit_runtime.kernels.cuda.launch import device_architecture, kernel
from awqkit_runtime.kernels.cuda.tensor_map import tensor_map
from awqkit_runtime.kernels.w4_plan import GpuModel, LaunchPlan, all_plans, plan_w4_linear
from awqkit_runtime.kernels.w4_tiles import CODE_WORDS, PARAM_WORDS, TILE_INPUTS, W4Tiles


def w4_tiled_linear(x: Tensor, weight: W4Tiles, bias: Tensor | None = None) -> Tensor:
    """x · Wᵀ + bias: x [..., in] BF16, bias [out] BF16 → [..., out] BF16. FP32 sums.

    What runs, w4_plan says; the same rows always give the same bits.
    """
    if x.dtype != torch.bfloat16 or x.shape[-1] != weight.in_features:
        raise TypeError(
            f"w4_tiled_linear takes BF16 [..., {weight.in_features}], not {x.dtype} {[*x.shape]}"
        )
    out = x.new_empty((*x.shape[:-1], weight.out_features))
    if out.numel():
        rows = x.reshape(-1, weight.in_features).contiguous()
        plan = plan_w4_linear(
            rows.shape[0], weight.out_features, weight.in_features, gpu_model(x.device)
        )
        run_plan(plan, rows, weight, bias, out)
    return out


def run_plan(
    plan: LaunchPlan, x: Tensor, weight: W4Tiles, bias: Tensor | None, out: Tensor
) -> None:
    """Launch a plan that was made for x [m, k] and this weight."""
    workspace, flags = _scratch(x.device).at_least(plan.workspace_bytes, plan.flags)
    values = {
        **{"x": x, "codes": weight.codes, "params": weight.params, "bias": bias, "y": out},
        **{"workspace": workspace, "flags": flags},
        **_maps(plan, x, weight),
    }
    arguments = (
        *(values[operand] for operand in plan.operands),
        *(x.shape[0], weight.out_features, weight.in_features, *plan.extra),
    )
    kernel(plan.program, plan.entry, x.device).launch(plan.shape, arguments)


def _maps(plan: LaunchPlan, x: Tensor, weight: W4Tiles) -> dict[str, Any]:
    """The tensor maps that the kernel takes."""
    maps: dict[str, Any] = {}
    boxes = plan.boxes
    if boxes is None:
        return maps
    maps["x_map"] = tensor_map(x, (boxes.tokens, boxes.inputs), swizzled=True)
    if boxes.row_tiles:
        for name, words, width in (
            ("codes_map", weight.codes, boxes.code_inputs // TILE_INPUTS * CODE_WORDS),
            ("params_map", weight.params, PARAM_WORDS),
        ):
            maps[name] = tensor_map(words.flatten(1), (boxes.row_tiles, width), swizzled=False)
    return maps


def prepare(weight: W4Tiles) -> None:
    """Compile, load and make room for all that the linear may launch later.

    Nothing of that could be done while a CUDA graph is captured.
    """
    _prepare(weight.out_features, weight.in_features, weight.codes.device)


@cache
def _prepare(n: int, k: int, device: torch.device) -> None:
    plans = all_plans(n, k, gpu_model(device))
    compile_programs({plan.program for plan in plans}, device_architecture(device))
    _scratch(device).at_least(
        max(plan.workspace_bytes for plan in plans), max(plan.flags for plan in plans)
    )
    for plan in plans:
        kernel(plan.program, plan.entry, device).prepare(plan.shape)


@cache
def gpu_model(device: torch.device) -> GpuModel:
    """Of a CUDA device."""
    properties = torch.cuda.get_device_properties(device)
    return GpuModel(
        arch=device_architecture(device), multiprocessors=properties.multi_processor_count
    )


class _Scratch:
    """Workspace and flags of a device, which grow to the largest plan.

    All launches share them, so launches on one device must be ordered, as those of a stream are.
    Those that became too small are kept: graphs that another model captured hold their addresses.
    """

    def __init__(self, device: torch.device) -> None:
        self._workspaces = [torch.empty(0, dtype=torch.uint8, device=device)]
        self._flags = [torch.zeros(0, dtype=torch.int32, device=device)]

    def at_least(self, workspace_bytes: int, flags: int) -> tuple[Tensor, Tensor]:
        if self._workspaces[-1].numel() < workspace_bytes:
            self._workspaces.append(self._workspaces[-1].new_empty(workspace_bytes))
        if self._flags[-1].numel() < flags:
            self._flags.append(self._flags[-1].new_zeros(flags))
        return self._workspaces[-1], self._flags[-1]


@cache
def _scratch(device: torch.device) -> _Scratch:
    return _Scratch(device)
