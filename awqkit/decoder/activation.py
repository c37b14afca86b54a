"""The activations of gated feed-forward layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from awqkit.checkpoint.decoder_config import Activation


def activate(x: Tensor, activation: Activation) -> Tensor:
    """silu(x), or GELU in its approximation by tanh (Hendrycks and Gimpel, 2016)."""
    return F.silu(x) if activation == "silu" else F.gelu(x, approximate="tanh")
