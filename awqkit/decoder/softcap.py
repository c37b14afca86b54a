"""Soft caps: scores and logits that saturate instead of growing without bound."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(x / cap) in x's dtype; x itself for None."""
    return x if cap is None else torch.tanh(x / cap) * cap
