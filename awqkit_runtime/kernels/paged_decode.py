"""Attention of one new token a row over paged keys and values, on CUDA."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from awqkit_runtime.cache.page_format import LayerPages, PageFormat
from awqkit_runtime.kernels.cuda.compiler import compile_programs
from awqkit_runtime.kernels.cuda.launch import device_architecture, kernel
from awqkit_runtime.kernels.paged_decode_plan import (
    PagedDecodePlan,
    can_decode,
    plan_paged_decode,
    score_scale,
)
from awqkit_runtime.kernels.w4_tiled_linear import gpu_model

__all__ = ["can_decode", "paged_decode", "prepare_decode", "run_paged_decode"]

#: Of a row of q: the kernel reads four elements at once.
_Q_ALIGNMENT = 4


def paged_decode(
    q: Tensor,
    pages: LayerPages,
    page_table: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """softmax(scale · q·kᵀ) · v over the keys of every row.

    q: BF16 [rows, heads, head_dim], in the pages' key frame; rows may be strided. page_table:
    int32 [rows, width], the pages of each row in order. lengths: int32 [rows], the keys of each row
    with that of its new token, all of which are stored; 0: an idle row, whose output is zeros. With
    a window a row sees its last `window` keys; with a softcap the scores x become
    softcap · tanh(x / softcap). Returns BF16 [rows, heads, head_dim], the same bits every time.

    pages must be such as can_decode allows, TypeError for other tensors than these. Nothing waits
    for the device, and the launch does not depend on what page_table and lengths hold: a CUDA graph
    that captured it, after prepare_decode, may be replayed with other values in them.

    lengths, page_table and all tokens but the newest are read while the launches ahead may still
    run. Only kernels that start their successors early matter, and they may write q and store the
    new tokens but none of the rest; whatever is written before a launch without overlap is there.
    """
    plan = plan_paged_decode(pages.format, q.shape[1], gpu_model(q.device))
    return run_paged_decode(
        plan, q, pages, page_table, lengths, scale=scale, window=window, softcap=softcap
    )


def run_paged_decode(
    plan: PagedDecodePlan,
    q: Tensor,
    pages: LayerPages,
    page_table: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """As paged_decode, by a plan that was made for these pages and heads."""
    _require_fitting(q, pages.format, page_table, lengths)
    rows, heads, head_dim = q.shape
    out = q.new_empty((rows, heads, head_dim))
    if not rows:
        return out
    kv_heads = pages.format.num_kv_heads
    arguments = (
        *(q, pages.keys, pages.values, pages.params, page_table, lengths, out),
        *_scratch(plan, q.device),
        *(rows, q.stride(0), page_table.stride(0), kv_heads, heads // kv_heads, plan.teams),
        window or 0,
        *score_scale(scale, softcap),
        plan.even_blocks(rows, kv_heads),
    )
    kernel(plan.program, plan.entry, q.device).launch(plan.shape, arguments)
    return out


def prepare_decode(format: PageFormat, num_heads: int, device: torch.device) -> None:
    """Compile, load and make room for what paged_decode launches; a capture allows none of it."""
    plan = plan_paged_decode(format, num_heads, gpu_model(device))
    compile_programs({plan.program}, device_architecture(device))
    kernel(plan.program, plan.entry, device).prepare(plan.shape)
    _scratch(plan, device)


@cache
def _scratch(plan: PagedDecodePlan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Workspace and zero counters of all launches of a plan, which therefore must be ordered, as
    those of a stream are. They stay where they are, since captured graphs hold their addresses."""
    return (
        torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=device),
        torch.zeros(plan.arrivals, dtype=torch.int32, device=device),
    )


def _require_fitting(q: Tensor, format: PageFormat, page_table: Tensor, lengths: Tensor) -> None:
    rows, heads, head_dim = q.shape
    if not can_decode(format, heads):
        raise TypeError(f"paged_decode does not take {heads} heads over {format}")
    if (
        q.dtype != torch.bfloat16
        or head_dim != format.head_dim
        or q.stride()[1:] != (head_dim, 1)
        or q.stride(0) % _Q_ALIGNMENT
        or q.storage_offset() % _Q_ALIGNMENT
    ):
        raise TypeError(
            f"q must be BF16 [rows, heads, {format.head_dim}] with contiguous heads, not "
            f"{q.dtype} {[*q.shape]} with strides {q.stride()}"
        )
    for name, tensor, dims in (("page_table", page_table, 2), ("lengths", lengths, 1)):
        if (
            tensor.dtype != torch.int32
            or tensor.dim() != dims
            or tensor.shape[0] != rows
            or tensor.stride(-1) != 1
        ):
            raise TypeError(
                f"{name} must be int32 with {dims} dimensions and {rows} rows, not "
                f"{tensor.dtype} {[*tensor.shape]} with strides {tensor.stride()}"
            )
