"""The parts of a linear's output that several GPUs have, added up in the norm that reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.meetings import Meetings
from awqkit_runtime.kernels.rms_norm import norm_shape

PROGRAM = Program(stem="rank_sum")


def rank_sum(meetings: Meetings, part: Tensor) -> Tensor:
    """The sum of all ranks' parts, in the order of the ranks and the same bits on each.

    part: BF16 [rows, n], contiguous, n % 8 = 0, rows up to meetings.rows.
    """
    out = torch.empty_like(part)
    _launch(meetings, part, None, None, None, out, 0.0, False)
    return out


def rank_sum_add_rms_norm(
    meetings: Meetings,
    x: Tensor,
    part: Tensor,
    weight: Tensor,
    eps: float,
    *,
    unit_offset: bool = False,
) -> tuple[Tensor, Tensor]:
    """x + rank_sum(part), and its norm; x like part, the same on all ranks, as is weight [n]."""
    total, out = torch.empty_like(x), torch.empty_like(x)
    _launch(meetings, part, x, weight, total, out, eps, unit_offset)
    return total, out


def _launch(
    meetings: Meetings,
    part: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    total: Tensor | None,
    out: Tensor,
    eps: float,
    unit_offset: bool,
) -> None:
    rows, n = part.shape
    if rows > meetings.rows:
        raise ValueError(f"{rows} rows, where {meetings.rows} can meet")
    if not rows:
        return
    arguments = (
        *(meetings.as_argument(), meetings.counts, meetings.rows, part, x, weight, total, out),
        *(n, float(eps), int(unit_offset)),
    )
    kernel(PROGRAM, "rank_sum", part.device).launch(norm_shape(rows, n), arguments)
