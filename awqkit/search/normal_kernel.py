"""The normal equations of all groups' scales on a GPU, without products that are written down."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit.search.equilibrium import Equilibrated

#: Rows of a weight that one program works on, its warps, and the loads under way.
ROWS_AT_ONCE, WARPS, STAGES = 64, 4, 2


def normal_equations(steps: Tensor, inputs: Equilibrated) -> Tensor:
    """What refinement.normal_equations gives, by factors of 16 bits, in which steps are exact."""
    rows, groups, _ = steps.shape
    largest = inputs.root.max()
    scaled = (steps.flatten(1) * (inputs.root / largest)).half()
    normal = torch.zeros(rows, groups, groups, device=steps.device)
    _normal[(triton.cdiv(rows, ROWS_AT_ONCE), groups)](
        scaled,
        inputs.matrix,
        normal,
        rows,
        groups,
        ROWS=ROWS_AT_ONCE,
        GROUP=GROUP_SIZE,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return normal.mul_(largest).mul_(largest)


@triton.jit(do_not_specialize=["groups"])
def _normal(  # type: ignore[no-untyped-def]
    steps_at,
    matrix_at,
    normal_at,
    rows,
    groups,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """normal[row, other, group] for all others from the group on."""
    group = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, GROUP)
    inside = row < rows
    columns = groups * GROUP
    row_at = row.to(tl.int64)[:, None] * columns + column[None, :]
    steps = tl.load(steps_at + row_at + group * GROUP, mask=inside[:, None], other=0.0)
    matrix_at += (group * GROUP + column).to(tl.int64)[:, None] * columns + column[None, :]
    normal_at += row.to(tl.int64) * groups * groups + group
    for other in range(group, groups):
        reach = tl.dot(steps, tl.load(matrix_at + other * GROUP))
        theirs = tl.load(steps_at + row_at + other * GROUP, mask=inside[:, None], other=0.0)
        sums = tl.sum(reach * theirs.to(tl.float32), axis=1)
        tl.store(normal_at + other * groups, sums, mask=inside)
