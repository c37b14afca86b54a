"""Keys and values out of the pages of a sequence on CUDA, for attention that reads BF16."""

from __future__ import annotations

import ctypes

from torch import Tensor

from awqkit_runtime.cache.page_format import LayerPages
from awqkit_runtime.kernels import rotary_append
from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program

#: By size of head: all that the kernel takes.
PROGRAMS = {
    head_dim: Program(stem="page_gather", defines=(f"HEAD_DIM={head_dim}",))
    for head_dim in rotary_append.PROGRAMS
}
_THREADS = 256
#: Neighbouring numbers of 8 or 16 bits that a thread takes; of 4 bits twice as many.
_NUMBERS = 8


def page_gather_(pages: LayerPages, page_ids: Tensor, first: int, k: Tensor, v: Tensor) -> None:
    """Fill k and v, BF16 [count, kv_heads, head_dim], contiguous, from positions first … on.

    page_ids: int32, the pages of the sequence in order, contiguous. Keys are in the frame of the
    pages, which are such as rotary_append.can_append allows.
    """
    count = k.shape[0]
    if not count:
        return
    form = pages.format
    blocks = -(-count * form.head_dim // (_NUMBERS * _THREADS))
    shape = LaunchShape(grid=(blocks, form.num_kv_heads, 2), block=(_THREADS, 1, 1), overlap=True)
    arguments = (
        *(pages.keys, pages.values, pages.params, page_ids, k, v),
        ctypes.c_longlong(first),
        *(count, form.num_kv_heads, form.k_bits, form.v_bits),
    )
    kernel(PROGRAMS[form.head_dim], "page_gather", k.device).launch(shape, arguments)
