"""RMS norm on CUDA, in one kernel with the residual that is added before it."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program

PROGRAM = Program(stem="rms_norm")
#: Numbers that a thread reads at once.
_VECTOR = 8
_LARGEST_BLOCK = 1024


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, unit_offset: bool = False) -> Tensor:
    """As awqkit.decoder.rms_norm: x [rows, n] and weight [n] BF16, contiguous; n % 8 = 0."""
    out = torch.empty_like(x)
    _launch(x, None, weight, None, out, eps, unit_offset)
    return out


def add_rms_norm(
    x: Tensor, delta: Tensor, weight: Tensor, eps: float, *, unit_offset: bool = False
) -> tuple[Tensor, Tensor]:
    """x + delta, and its norm; arguments as in rms_norm."""
    total, out = torch.empty_like(x), torch.empty_like(x)
    _launch(x, delta, weight, total, out, eps, unit_offset)
    return total, out


def _launch(
    x: Tensor,
    delta: Tensor | None,
    weight: Tensor,
    total: Tensor | None,
    out: Tensor,
    eps: float,
    unit_offset: bool,
) -> None:
    rows, n = x.shape
    if not rows:
        return
    arguments = (x, delta, weight, total, out, n, float(eps), int(unit_offset))
    kernel(PROGRAM, "rms_norm", x.device).launch(norm_shape(rows, n), arguments)


def norm_shape(rows: int, n: int) -> LaunchShape:
    """Of a kernel that norms each row of n numbers in a block."""
    threads = min(-(-n // (_VECTOR * 32)) * 32, _LARGEST_BLOCK)
    return LaunchShape(grid=(rows, 1, 1), block=(threads, 1, 1), overlap=True)
