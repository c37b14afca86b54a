"""silu(gate) · up on CUDA."""

from __future__ import annotations

from torch import Tensor

from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program

PROGRAM = Program(stem="silu_mul")
#: Numbers of a thread and threads of a block, and the same where so few numbers there are.
_VECTOR, _THREADS = 8, 256
_FEW_VECTOR, _FEW_THREADS, _FEW_NUMBERS = 2, 128, 2**17


def silu_mul(gate_up: Tensor) -> Tensor:
    """BF16 [rows, 2n], gate first, contiguous → [rows, n]; n % 8 = 0. FP32 inside."""
    rows, width = gate_up.shape
    out = gate_up.new_empty((rows, width // 2))
    if rows:
        entry, shape = silu_mul_launch(rows, width // 2)
        kernel(PROGRAM, entry, out.device).launch(shape, (gate_up, out, width // 2))
    return out


def silu_mul_launch(rows: int, n: int) -> tuple[str, LaunchShape]:
    """The entry and the launch for an output of rows × n numbers."""
    few = rows * n <= _FEW_NUMBERS
    vector, threads = (_FEW_VECTOR, _FEW_THREADS) if few else (_VECTOR, _THREADS)
    shape = LaunchShape(
        grid=(rows, -(-n // (vector * threads)), 1), block=(threads, 1, 1), overlap=True
    )
    return "silu_mul_few" if few else "silu_mul", shape
