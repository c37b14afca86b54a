"""Rotary embedding of a step's queries and keys on CUDA, with the norms of their heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program

PROGRAM = Program(stem="rotary")
_WARPS = 4
#: From so many rows on a warp takes several heads, since angles take longer to fetch than to use.
_MANY_ROWS, _HEADS_A_WARP = 64, 5
_LARGEST_ROTARY_DIM = 256


@dataclass(frozen=True, kw_only=True)
class HeadNorms:
    """RMS norms over each head before it turns. query, key: BF16 [head_dim]."""

    query: Tensor
    key: Tensor
    eps: float
    unit_offset: bool


#: (layer, qkv, cos, sin, norms) → [rows, heads, head_dim]: attention of what the projections gave,
#: whose heads are still to be normed and turned. qkv, cos, sin: as rotary_ takes them, with the
#: values behind the keys; qkv is overwritten.
AttendProjected = Callable[[int, Tensor, Tensor, Tensor, HeadNorms | None], Tensor]


def can_rotate(rotary_dim: int, head_dim: int) -> bool:
    """Whether the kernel takes heads of this size."""
    return rotary_dim % 4 == 0 and rotary_dim <= _LARGEST_ROTARY_DIM and head_dim % 2 == 0


def rotary_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    query_heads: int,
    key_heads: int,
    head_dim: int,
    norms: HeadNorms | None = None,
) -> None:
    """Norm and turn, in place, the first query_heads + key_heads heads of every row of qkv.

    qkv: BF16 [rows, ≥ heads · head_dim], rows contiguous in themselves. cos, sin: float32
    [rows, rotary_dim], contiguous, as awqkit.decoder.rotary_tables gives them. FP32 inside. The
    sizes are such as can_rotate allows.
    """
    rows, heads = qkv.shape[0], query_heads + key_heads
    if not rows:
        return
    heads_a_warp = 1 if rows < _MANY_ROWS else _HEADS_A_WARP
    blocks = -(-heads // (_WARPS * heads_a_warp))
    shape = LaunchShape(grid=(rows, blocks, 1), block=(32 * _WARPS, 1, 1), overlap=True)
    arguments = (
        *(qkv, cos, sin),
        None if norms is None else norms.query,
        None if norms is None else norms.key,
        *(qkv.stride(0), heads, query_heads, head_dim, cos.shape[-1], heads_a_warp),
        0.0 if norms is None else float(norms.eps),
        int(norms is not None and norms.unit_offset),
    )
    kernel(PROGRAM, "rotary", qkv.device).launch(shape, arguments)
