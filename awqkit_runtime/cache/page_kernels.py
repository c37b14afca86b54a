"""What the CUDA kernels do on the pages of a pool, for the states of a step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.kernels.paged_decode import (
    DecodeRows,
    can_decode,
    paged_decode,
    share_rows,
)
from awqkit_runtime.kernels.rotary import HeadNorms
from awqkit_runtime.kernels.rotary_append import can_append, rotary_append_


def appends_in_kernels(pool: PagePool) -> bool:
    """Whether the kernels fill the pages of this pool."""
    return pool.device.type == "cuda" and can_append(pool.format)


def decodes_in_kernels(pool: PagePool, config: DecoderConfig) -> bool:
    """Whether they also attend over them."""
    return appends_in_kernels(pool) and can_decode(pool.format, config.num_heads)


def append_projected(
    pool: PagePool,
    layer: int,
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    norms: HeadNorms | None,
    slots: Tensor,
    *,
    config: DecoderConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Store what the projections gave (kernels.rotary_append); queries, keys and values as views.

    q [rows, heads, head_dim], k and v [rows, kv_heads, head_dim]. Queries are in the frame of the
    pages; so are keys where the pages are dense, and then they are what these hold.
    """
    rotary_append_(
        *(qkv, cos, sin, pool.layer(layer), slots),
        query_heads=config.num_heads,
        norms=norms,
        frame=pool.key_frame.layer(layer),
    )
    heads = qkv.unflatten(-1, (-1, config.head_dim))
    q, k, v = heads.split((config.num_heads, config.num_kv_heads, config.num_kv_heads), dim=1)
    return q, k, v


def rows_by_window(
    pool: PagePool,
    page_table: Tensor,
    lengths: Tensor,
    *,
    config: DecoderConfig,
    steady: bool = False,
) -> dict[int | None, DecodeRows]:
    """kernels.paged_decode.share_rows for each window that layers have."""
    windows = dict.fromkeys(config.window(layer) for layer in range(config.num_layers))
    return {
        window: share_rows(
            *(pool.format, config.num_heads, page_table, lengths), window=window, steady=steady
        )
        for window in windows
    }


def decode(
    pool: PagePool,
    layer: int,
    q: Tensor,
    rows: Mapping[int | None, DecodeRows],
    *,
    config: DecoderConfig,
) -> Tensor:
    """kernels.paged_decode of one layer: q [rows, heads, head_dim] → like q. rows: by window."""
    return paged_decode(
        *(q, pool.layer(layer), rows[config.window(layer)]),
        scale=config.softmax_scale,
        softcap=config.attention_softcap,
    )
