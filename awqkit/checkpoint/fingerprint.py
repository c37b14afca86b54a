"""A short fingerprint of a weight's values, to tell whether what was read is what was written."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from awqkit.checkpoint.quantized_weight import QuantizedWeight

#: Values that are in memory at once as 32-bit words.
VALUES_AT_ONCE = 1 << 24


def fingerprint(weight: Tensor | QuantizedWeight) -> str:
    """SHA-256 over one checksum a row, computed where the weight lies.

    A quantized weight counts by what it dequantizes to, a dense one by its bits. The checksum of a
    row is Σ mᵢ·bitsᵢ mod 2³² with fixed random odd mᵢ: whichever value alone changes, it changes,
    and two rows or columns that change places alter it too.
    """
    shaped = weight.codes if isinstance(weight, QuantizedWeight) else _as_rows(weight)
    rows, columns = shaped.shape
    digest = hashlib.sha256(f"{rows} {columns}".encode())
    step = max(1, VALUES_AT_ONCE // max(1, columns))
    for first in range(0, rows, step):
        words = _words(weight, slice(first, first + step))
        sums = (words * _multipliers(columns, words.device)).sum(1, dtype=torch.int32)
        digest.update(sums.cpu().numpy().tobytes())
    return digest.hexdigest()


def _words(weight: Tensor | QuantizedWeight, rows: slice) -> Tensor:
    """int32 [rows, columns]: the bits of the values."""
    if isinstance(weight, QuantizedWeight):
        # −0 and 0 are the same weight.
        return (weight.select(rows).dequantize() + 0.0).view(torch.int32)
    values = _as_rows(weight)[rows].contiguous()
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32}[values.dtype.itemsize]
    return values.view(bits).to(torch.int32)


def _as_rows(weight: Tensor) -> Tensor:
    return weight if weight.dim() == 2 else weight.reshape(1, -1)


def _multipliers(columns: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(columns)
    drawn = torch.randint(-(2**31), 2**31, (columns,), generator=generator)
    return (drawn.to(torch.int32) | 1).to(device)
