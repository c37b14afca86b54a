"""New tokens on their way into attention on CUDA: norms, rotary embedding, key frame and pages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit_runtime.cache.page_format import LayerPages, PageFormat
from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.rotary import HeadNorms

#: By size of head: all that the kernel takes.
PROGRAMS = {
    head_dim: Program(stem="rotary_append", defines=(f"HEAD_DIM={head_dim}",))
    for head_dim in (64, 96, 128, 256)
}
_WARPS = 4
#: From so many rows on a warp takes several heads, since angles take longer to fetch than to use.
_MANY_ROWS, _HEADS_A_WARP = 64, 5


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerFrame:
    """One layer's part of the frame that keys and queries are laid in (cache.key_frame)."""

    #: float32 [kv_heads, head_dim], contiguous; None: nothing is subtracted.
    mean: Tensor | None = None
    #: As mean; None: channels stay as loud as they are.
    channel_scale: Tensor | None = None
    rotated: bool = False


def can_append(format: PageFormat) -> bool:
    """Whether the kernel fills such pages: codes of 8 and 4 bits, or BF16."""
    return format.head_dim in PROGRAMS and format.dtype == torch.bfloat16


def prepare_append(format: PageFormat, device: torch.device) -> None:
    """Compile and load the kernel, so that a capture need not. device: with its index."""
    kernel(PROGRAMS[format.head_dim], "rotary_append", device)


def rotary_append_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    pages: LayerPages,
    slots: Tensor,
    *,
    query_heads: int,
    norms: HeadNorms | None,
    frame: LayerFrame,
) -> None:
    """Norm and turn queries and keys, lay them in the frame, store keys and values at slots.

    qkv: BF16 [rows, (query_heads + 2 · kv_heads) · head_dim], rows contiguous in themselves and at
    an even stride: in place queries become what attends over the pages; keys are turned, and where
    the pages are dense they become what these hold. cos, sin: float32 [rows, rotary_dim], as
    kernels.rotary.rotary_ takes them; written by a kernel that starts none early. slots: int64
    [rows], page · 64 + offset; a row whose slot is negative is not stored. The pages are such as
    can_append allows. Rotation and frame are computed in FP32; between them numbers are rounded to
    BF16, as if they were done one after the other.
    """
    rows = qkv.shape[0]
    if not rows:
        return
    form = pages.format
    heads = query_heads + 2 * form.num_kv_heads
    heads_a_warp = 1 if rows < _MANY_ROWS else _HEADS_A_WARP
    blocks = -(-heads // (_WARPS * heads_a_warp))
    arguments = (
        *(qkv, cos, sin),
        None if norms is None else norms.query,
        None if norms is None else norms.key,
        *(pages.keys, pages.values, pages.params, slots, frame.mean, frame.channel_scale),
        *(qkv.stride(0), query_heads, form.num_kv_heads, cos.shape[-1]),
        *(form.k_bits, form.v_bits, int(frame.rotated), heads_a_warp),
        0.0 if norms is None else float(norms.eps),
        int(norms is not None and norms.unit_offset),
    )
    shape = LaunchShape(grid=(rows, blocks, 1), block=(32 * _WARPS, 1, 1), overlap=True)
    kernel(PROGRAMS[form.head_dim], "rotary_append", qkv.device).launch(shape, arguments)
