"""Where the new tokens of a step of decodes go, read from tensors on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program

PROGRAM = Program(stem="decode_places")
_THREADS = 128


def decode_places(page_table: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Slots, int64 [rows], and lengths, int32 [rows], of one new token in each row.

    page_table: int32 [rows, width], rows contiguous in themselves, of pages of 64 tokens;
    positions: int64 [rows]. A slot is page · 64 + offset, a length counts the tokens up to the new
    one; of a row whose position is negative they are −1 and 0.
    """
    rows = page_table.shape[0]
    slots = torch.empty_like(positions)
    lengths = torch.empty(rows, dtype=torch.int32, device=positions.device)
    if rows:
        shape = LaunchShape(grid=(-(-rows // _THREADS), 1, 1), block=(_THREADS, 1, 1), overlap=True)
        arguments = (page_table, positions, slots, lengths, rows, page_table.stride(0))
        kernel(PROGRAM, "decode_places", positions.device).launch(shape, arguments)
    return slots, lengths
