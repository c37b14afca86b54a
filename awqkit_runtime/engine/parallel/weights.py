"""A rank's part of one layer's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from awqkit.checkpoint import DecoderConfig, PackedWeight, QuantizedWeight
from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit_runtime.engine.parallel.shares import (
    Share,
    inner_channels,
    key_rows,
    query_rows,
    shard_config,
)
from awqkit_runtime.models.decoder import Weights

Weight = Tensor | QuantizedWeight


@dataclass(frozen=True, kw_only=True)
class LayerShare:
    """block: named as the layer's own. The input of o has columns of zeros to get on both sides.

    That is where the share begins or ends within a group, the whole of which is kept.
    """

    block: Weights
    o_padding: tuple[int, int]


def shard_layer(
    block: Mapping[str, Tensor | PackedWeight], config: DecoderConfig, share: Share
) -> LayerShare:
    """Biases of what is summed over the ranks belong to rank 0; norms to all."""
    inner = shard_config(config, share.ranks).intermediate_size
    part: dict[str, Weight] = {}
    o_padding = (0, 0)
    for name, packed in block.items():
        weight = packed.unpack() if isinstance(packed, PackedWeight) else packed
        module, _, kind = name.rpartition(".")
        if module == "self_attn.q_proj":
            part[name] = _rows(weight, query_rows(config, share))
        elif module in ("self_attn.k_proj", "self_attn.v_proj"):
            part[name] = _rows(weight, key_rows(config, share))
        elif module in ("mlp.gate_proj", "mlp.up_proj"):
            part[name] = _pad_rows(_rows(weight, inner_channels(config, share)), inner)
        elif module in ("self_attn.o_proj", "mlp.down_proj") and kind == "bias":
            if share.rank == 0:
                part[name] = weight
        elif module == "self_attn.o_proj":
            part[name], o_padding = _columns(weight, query_rows(config, share))
        elif module == "mlp.down_proj":
            columns, _ = _columns(weight, inner_channels(config, share))
            part[name] = _pad_columns(columns, inner)
        else:
            part[name] = weight
    return LayerShare(block=part, o_padding=o_padding)


def _rows(weight: Weight, rows: range) -> Weight:
    """Of a weight [out, in] or a bias [out]."""
    if isinstance(weight, Tensor):
        return weight[rows.start : rows.stop]
    return QuantizedWeight(
        codes=weight.codes[rows.start : rows.stop],
        scales=weight.scales[rows.start : rows.stop],
        zeros=weight.zeros[rows.start : rows.stop],
    )


def _columns(weight: Weight, columns: range) -> tuple[Weight, tuple[int, int]]:
    """These columns, and how many columns of zeros lie before and after them.

    Of a quantized weight whole groups are kept: what others have of them stands at the zero point.
    """
    if isinstance(weight, Tensor):
        return weight[:, columns.start : columns.stop].contiguous(), (0, 0)
    first, last = columns.start // GROUP_SIZE, -(-columns.stop // GROUP_SIZE)
    zeros = weight.zeros[:, first:last].contiguous()
    codes = zeros.repeat_interleave(GROUP_SIZE, dim=1)
    before, after = columns.start - first * GROUP_SIZE, last * GROUP_SIZE - columns.stop
    codes[:, before : before + len(columns)] = weight.codes[:, columns.start : columns.stop]
    scales = weight.scales[:, first:last].contiguous()
    return QuantizedWeight(codes=codes, scales=scales, zeros=zeros), (before, after)


def _pad_rows(weight: Weight, rows: int) -> Weight:
    """Rows of zeros behind."""
    if isinstance(weight, Tensor):
        return _pad(weight, rows, dim=0)
    return QuantizedWeight(
        codes=_pad(weight.codes, rows, dim=0),
        scales=_pad(weight.scales, rows, dim=0),
        zeros=_pad(weight.zeros, rows, dim=0),
    )


def _pad_columns(weight: Weight, columns: int) -> Weight:
    """Columns of zeros behind, whole groups of them."""
    if isinstance(weight, Tensor):
        return _pad(weight, columns, dim=1)
    return QuantizedWeight(
        codes=_pad(weight.codes, columns, dim=1),
        scales=_pad(weight.scales, columns // GROUP_SIZE, dim=1),
        zeros=_pad(weight.zeros, columns // GROUP_SIZE, dim=1),
    )


def _pad(tensor: Tensor, size: int, *, dim: int) -> Tensor:
    missing = size - tensor.shape[dim]
    if not missing:
        return tensor
    behind = (0, missing) if dim == tensor.dim() - 1 else (0, 0, 0, missing)
    return F.pad(tensor, behind)


def pad_input(x: Tensor, padding: tuple[int, int]) -> Tensor:
    """Zeros before and after the last dimension."""
    return x if padding == (0, 0) else F.pad(x, padding)
