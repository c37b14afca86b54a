"""Attention of one new token a row over paged keys and values, on CUDA."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
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
    plan_steady_decode,
    plans_of_all_batches,
    score_scale,
)
from awqkit_runtime.kernels.w4_tiled_linear import gpu_model

__all__ = [
    "DecodeRows",
    "can_decode",
    "paged_decode",
    "prepare_decode",
    "prepare_steady_decode",
    "share_rows",
]

#: Of a row of q: the kernel reads four elements at once.
_Q_ALIGNMENT = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodeRows:
    """What all launches of a step have in common whose layers have the same window.

    shares: int32, which tokens each warp reads and from which pages at first, as paged_decode.cu
    keeps them: until the last launch, lengths and the rows' pages stay what they were. A graph that
    captured launches holds the addresses of these tensors: they must live as long as it is
    replayed, unless it captured share_rows too.
    """

    plan: PagedDecodePlan
    format: PageFormat
    num_heads: int
    page_table: Tensor
    lengths: Tensor
    window: int | None
    shares: Tensor


def share_rows(
    format: PageFormat,
    num_heads: int,
    page_table: Tensor,
    lengths: Tensor,
    *,
    window: int | None,
    steady: bool = False,
) -> DecodeRows:
    """Share the keys of a step's rows among the warps of the device, in one small launch.

    page_table: int32 [rows, width], the pages of each row in order. lengths: int32 [rows], the keys
    of each row with that of its new token; 0: an idle row. With a window a row sees its last
    `window` keys. TypeError for other tensors, or pages that can_decode does not allow.

    steady: no bit of a row's output depends on the other rows, as long as there are as many, idle
    or not. Rows of one sequence may then see each other's new tokens.

    The launch does not depend on what the tensors hold. It waits for those ahead, and none behind
    it starts before it has ended: paged_decode reads what it wrote without waiting.
    """
    if not can_decode(format, num_heads):
        raise TypeError(f"paged_decode does not take {num_heads} heads over {format}")
    plan_rows = plan_steady_decode if steady else plan_paged_decode
    plan = plan_rows(format, num_heads, len(lengths), gpu_model(lengths.device))
    return run_share_rows(plan, format, num_heads, page_table, lengths, window=window)


def run_share_rows(
    plan: PagedDecodePlan,
    format: PageFormat,
    num_heads: int,
    page_table: Tensor,
    lengths: Tensor,
    *,
    window: int | None,
) -> DecodeRows:
    """As share_rows, for launches of a plan that was made for these pages and heads."""
    for name, tensor, dims in (("page_table", page_table, 2), ("lengths", lengths, 1)):
        if (
            tensor.dtype != torch.int32
            or tensor.dim() != dims
            or tensor.shape[0] != len(lengths)
            or tensor.stride(-1) != 1
        ):
            raise TypeError(
                f"{name} must be int32 with {dims} dimensions and {len(lengths)} rows, not "
                f"{tensor.dtype} {[*tensor.shape]} with strides {tensor.stride()}"
            )
    shares = torch.empty(plan.share_bytes // 4, dtype=torch.int32, device=lengths.device)
    rows, kv_heads = len(lengths), format.num_kv_heads
    if rows:
        arguments = (
            *(lengths, page_table, shares, rows, page_table.stride(0), kv_heads, plan.teams),
            *(window or 0, plan.even_blocks(rows, kv_heads)),
        )
        kernel(plan.program, plan.share_entry, lengths.device).launch(plan.share_shape, arguments)
    return DecodeRows(
        plan=plan,
        format=format,
        num_heads=num_heads,
        page_table=page_table,
        lengths=lengths,
        window=window,
        shares=shares,
    )


def paged_decode(
    q: Tensor, pages: LayerPages, rows: DecodeRows, *, scale: float, softcap: float | None
) -> Tensor:
    """softmax(scale · q·kᵀ) · v over the keys of every row.

    q: BF16 [rows, heads, head_dim], in the pages' key frame; rows may be strided. All keys that the
    rows' lengths count are stored. With a softcap the scores x become
    softcap · tanh(x / softcap). Returns BF16 [rows, heads, head_dim], zeros for idle rows, the same
    bits every time. TypeError for other tensors than those that `rows` was made for.

    Nothing waits for the device, and the launch does not depend on what lengths and page table
    hold: a CUDA graph that captured it, with share_rows and after prepare_decode, may be replayed
    with other values in them.

    Unless rows are steady, their tensors and all tokens but the newest are read while the launches
    ahead may still run. Only kernels that start their successors early matter, and they may write q
    and store the new tokens but none of the rest; whatever is written before a launch without
    overlap is there.
    """
    _require_fitting(q, pages.format, rows)
    count, heads, head_dim = q.shape
    out = q.new_empty((count, heads, head_dim))
    if not count:
        return out
    plan, table = rows.plan, rows.page_table
    kv_heads = pages.format.num_kv_heads
    arguments = (
        *(q, pages.keys, pages.values, pages.params, table, rows.lengths, rows.shares, out),
        *_scratch(plan, q.device),
        *(count, q.stride(0), table.stride(0), kv_heads, heads // kv_heads, plan.teams),
        rows.window or 0,
        *score_scale(scale, softcap),
    )
    kernel(plan.program, plan.entry, q.device).launch(plan.shape, arguments)
    return out


def prepare_decode(format: PageFormat, num_heads: int, device: torch.device) -> None:
    """Compile, load and make room for what a step launches; a capture allows none of it."""
    _prepare(plans_of_all_batches(format, num_heads, gpu_model(device)), device)


def prepare_steady_decode(
    format: PageFormat, num_heads: int, rows: int, device: torch.device
) -> None:
    """The same for steady steps of so many rows."""
    _prepare([plan_steady_decode(format, num_heads, rows, gpu_model(device))], device)


def _prepare(plans: Collection[PagedDecodePlan], device: torch.device) -> None:
    compile_programs({plan.program for plan in plans}, device_architecture(device))
    for plan in plans:
        kernel(plan.program, plan.share_entry, device).prepare(plan.share_shape)
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


def _require_fitting(q: Tensor, format: PageFormat, rows: DecodeRows) -> None:
    wanted = (len(rows.lengths), rows.num_heads, format.head_dim)
    if format != rows.format:
        raise TypeError(f"the rows were shared for {rows.format}, not for {format}")
    if (
        q.dtype != torch.bfloat16
        or q.shape != wanted
        or q.stride()[1:] != (format.head_dim, 1)
        or q.stride(0) % _Q_ALIGNMENT
        or q.storage_offset() % _Q_ALIGNMENT
    ):
        raise TypeError(
            f"q must be BF16 {[*wanted]} with contiguous heads, not "
            f"{q.dtype} {[*q.shape]} with strides {q.stride()}"
        )
