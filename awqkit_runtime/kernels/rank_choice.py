"""The likeliest token of each row, where several GPUs have looked at parts of the vocabulary."""

from __future__ import annotations

from torch import Tensor

from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.meetings import Meetings

PROGRAM = Program(stem="rank_choice")
#: Of a row.
CHOICE_PLACES = 1
_THREADS = 32


def rank_choice_(
    meetings: Meetings,
    own: Tensor | None,
    values: Tensor | None,
    choice: Tensor,
    *,
    first_token: int,
) -> None:
    """Into choice, int64 [rows, 2], contiguous: what all ranks together chose, as greedy_ tells it.

    own: as greedy_ gives it of the tokens from first_token on; values: float32 [rows], of their
    logits, both contiguous; None on a rank that has looked at none.
    """
    rows = choice.shape[0]
    if rows > meetings.rows:
        raise ValueError(f"{rows} rows, where {meetings.rows} can meet")
    if rows:
        shape = LaunchShape(grid=(rows, 1, 1), block=(_THREADS, 1, 1))
        ranks = meetings.as_argument()
        arguments = (ranks, meetings.counts, meetings.rows, own, values, first_token, choice)
        kernel(PROGRAM, "rank_choice", choice.device).launch(shape, arguments)
