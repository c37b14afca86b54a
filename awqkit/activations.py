"""Where calibration rows wait between blocks: on the device or, if they are many, on the host."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig, QuantizedWeight
from awqkit.decoder import embed

#: Bytes of rows that stay on a GPU, however large that is.
MOST_ON_GPU = 3 << 30
#: Of a GPU's memory, the share that rows may take.
SHARE = 8


def room(device: torch.device) -> int:
    """Bytes of rows that may stay on the device."""
    if device.type == "cpu":
        return sys.maxsize
    total: int = torch.cuda.get_device_properties(device).total_memory
    return min(MOST_ON_GPU, total // SHARE)


def placed(rows: Tensor, device: torch.device, *, beside: Tensor | None = None) -> Tensor:
    """rows on the device, or on the host where its copy engine reaches them.

    beside: other rows, which may lie on the device already.
    """
    if _fits(rows.nbytes, device, beside):
        return rows.to(device)
    return torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows)


def embedded(
    tokens: Tensor,
    embedding: Tensor | QuantizedWeight,
    config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    beside: Tensor | None = None,
) -> Tensor:
    """tokens int64 [rows, T] as [rows, T, hidden] where `placed` would have them.

    They are looked up on the device.
    """
    embedding, tokens = embedding.to(device), tokens.to(device)
    shape = (*tokens.shape, config.hidden_size)
    fits = _fits(torch.Size(shape).numel() * dtype.itemsize, device, beside)
    result = (
        torch.empty(shape, dtype=dtype, device=device)
        if fits
        else torch.empty(shape, dtype=dtype, pin_memory=True)
    )
    for row, ids in zip(result, tokens, strict=True):
        row.copy_(embed(ids, embedding, config, dtype))
    return result


def split_streams(nbytes: int, streams: int, device: torch.device) -> tuple[int, int]:
    """Bytes on the device and on the host of so many times nbytes of rows, placed in turn."""
    on_device = min(streams, room(device) // max(1, nbytes))
    return on_device * nbytes, (streams - on_device) * nbytes


def _fits(nbytes: int, device: torch.device, beside: Tensor | None) -> bool:
    taken = beside.nbytes if beside is not None and beside.device.type == device.type else 0
    return nbytes + taken <= room(device)
