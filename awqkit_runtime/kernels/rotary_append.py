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
#: The entries of a program: for heads that turn as a whole, and for those that turn in part.
_WHOLE, _PART = "rotary_append_whole", "rotary_append_part"
#: Lanes that hold a head of 96; of any other size a lane holds eight numbers.
_LANES_OF_96 = 16
#: Heads of a kind that a group of lanes takes one after the other, until few enough warps are left
#: that a GPU holds them all at once.
_HEADS_A_GROUP, _WARPS_AT_ONCE = (1, 2, 4), 3200
#: Warps of a block: few spread over the whole GPU.
_FEW_WARPS, _WARPS = 512, 4


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


def entries(head_dim: int) -> tuple[str, ...]:
    """The entries that the program for heads of this size has."""
    return (_PART,) if head_dim == 96 else (_WHOLE, _PART)


def append_launch(
    rows: int, query_heads: int, kv_heads: int, head_dim: int
) -> tuple[LaunchShape, int]:
    """The launch for so many rows, and how many heads a group of lanes takes."""
    heads_a_warp = 32 // (_LANES_OF_96 if head_dim == 96 else head_dim // 8)
    kinds = (query_heads, kv_heads, kv_heads)
    for heads_a_group in _HEADS_A_GROUP:
        warps = rows * sum(-(-heads // (heads_a_warp * heads_a_group)) for heads in kinds)
        if warps <= _WARPS_AT_ONCE:
            break
    in_block = 1 if warps <= _FEW_WARPS else _WARPS
    shape = LaunchShape(
        grid=(-(-warps // in_block), 1, 1), block=(32 * in_block, 1, 1), overlap=True
    )
    return shape, heads_a_group


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
    a stride that is a multiple of 4, 8-byte aligned: in place queries become what attends over the
    pages; keys are turned, and where the pages are dense they become what these hold. cos, sin:
    float32 [rows, rotary_dim], as kernels.rotary.rotary_ takes them, 16-byte aligned. slots: int64
    [rows], page · 64 + offset; a row whose slot is negative is not stored. cos, sin and slots are
    read ahead: kernels that start none early wrote them before the one that wrote qkv began. The
    pages are such as can_append allows. Rotation and frame are computed in FP32; between them
    numbers are rounded to BF16, as if they were done one after the other.
    """
    rows = qkv.shape[0]
    if not rows:
        return
    form = pages.format
    shape, heads_a_group = append_launch(rows, query_heads, form.num_kv_heads, form.head_dim)
    whole = cos.shape[-1] == form.head_dim and _WHOLE in entries(form.head_dim)
    arguments = (
        *(qkv, cos, sin),
        None if norms is None else norms.query,
        None if norms is None else norms.key,
        *(pages.keys, pages.values, pages.params, slots, frame.mean, frame.channel_scale),
        *(rows, qkv.stride(0), query_heads, form.num_kv_heads, cos.shape[-1]),
        *(form.k_bits, form.v_bits, int(frame.rotated), heads_a_group),
        0.0 if norms is None else float(norms.eps),
        int(norms is not None and norms.unit_offset),
    )
    entry = _WHOLE if whole else _PART
    kernel(PROGRAMS[form.head_dim], entry, qkv.device).launch(shape, arguments)
