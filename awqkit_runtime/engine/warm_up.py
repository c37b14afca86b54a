"""What CUDA's libraries make at their first use, made while the weights are still being read.

cuBLAS and cuDNN have handles, workspaces and engines that take memory and up to half a second. Made
before the cache is sized, that memory is counted; made beside the reading, that time costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from awqkit_runtime.kernels import rotary_append
from awqkit_runtime.kernels.flash_attention import has_square_kernels, square_attention
from awqkit_runtime.layers.placement import Placement

#: Rows and columns of the products and tokens of the attention that are computed for nothing.
_SIZE = 64


@contextmanager
def libraries_made_meanwhile(placement: Placement, head_dim: int) -> Iterator[None]:
    """When the block is left they are ready for the thread that entered it.

    Torch keeps handles by thread, and hands those of a thread that has ended to the next one that
    needs some. On a CPU nothing is done.
    """
    if placement.device.type != "cuda":
        yield
        return
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(make_libraries, placement, head_dim)
        yield
        made.result()


@torch.inference_mode()
def make_libraries(placement: Placement, head_dim: int) -> None:
    """Uses each of them once on the placement's device, which must be CUDA."""
    with torch.cuda.device(placement.device):
        square = torch.zeros(_SIZE, _SIZE, device=placement.device, dtype=placement.dtype)
        F.linear(square, square)
        if _attends_in_squares(placement, head_dim):
            heads = square.new_zeros(1, _SIZE, 1, head_dim)
            square_attention(heads, heads, heads, scale=1.0)
        torch.cuda.current_stream().synchronize()


def _attends_in_squares(placement: Placement, head_dim: int) -> bool:
    return (
        placement.uses_cuda_kernels
        and head_dim in rotary_append.PROGRAMS
        and has_square_kernels(placement.device)
    )
