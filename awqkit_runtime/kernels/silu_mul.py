"""silu(gate) · up on CUDA."""

from __future__ import annotations

from torch import Tensor

from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program

PROGRAM = Program(stem="silu_mul")
_VECTOR, _THREADS = 8, 256


def silu_mul(gate_up: Tensor) -> Tensor:
    """BF16 [rows, 2n], gate first, contiguous → [rows, n]; n % 8 = 0. FP32 inside."""
    rows, width = gate_up.shape
    out = gate_up.new_empty((rows, width // 2))
    if rows:
        columns = -(-(width // 2) // (_VECTOR * _THREADS))
        shape = LaunchShape(grid=(rows, columns, 1), block=(_THREADS, 1, 1), overlap=True)
        kernel(PROGRAM, "silu_mul", out.device).launch(shape, (gate_up, out, width // 2))
    return out
