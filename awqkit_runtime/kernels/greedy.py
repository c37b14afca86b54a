"""The likeliest token of each row on CUDA, in one pass over the logits."""

from __future__ import annotations

from torch import Tensor

from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program

PROGRAM = Program(stem="greedy")
_THREADS = 1024


def greedy_(logits: Tensor, choice: Tensor) -> None:
    """Into choice, int64 [rows, 2], contiguous: each row's token, and 1 where the row is finite.

    logits: BF16 [rows, vocab], contiguous. Of equal logits the first one counts; a row that is not
    finite gets 0 beside some token of the vocabulary.
    """
    rows, vocab = logits.shape
    if rows:
        shape = LaunchShape(grid=(rows, 1, 1), block=(_THREADS, 1, 1))
        kernel(PROGRAM, "greedy", logits.device).launch(shape, (logits, choice, vocab))
