"""Top-p on CUDA, without putting a vocabulary in order."""

from __future__ import annotations

from torch import Tensor

from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program

PROGRAM = Program(stem="top_p")
_THREADS = 1024


def top_p_cutoffs(scaled: Tensor, rows: Tensor, top_p: Tensor) -> Tensor:
    """The least likely number that each row keeps, float32 [filtered, 1].

    scaled: float32 [·, vocab], contiguous: logarithms of probabilities up to a constant of each
    row, of which the largest is 0. rows: int64 [filtered]. top_p: float64 [filtered, 1], below 1. A
    number stays where all larger ones together have a share below top_p.
    """
    cutoffs = scaled.new_empty((len(rows), 1))
    if len(rows):
        shape = LaunchShape(grid=(len(rows), 1, 1), block=(_THREADS, 1, 1))
        arguments = (scaled, rows, top_p, cutoffs, scaled.shape[-1])
        kernel(PROGRAM, "top_p", scaled.device).launch(shape, arguments)
    return cutoffs
