"""A block's linears, and who watches what they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

#: Called with a site's name and what its linears are about to read, [..., tokens, in]. The sites
#: are "qkv", "o", "gate_up" and "down", and of each expert that a token passes "<module>.gate_up"
#: and "<module>.down".
Observer = Callable[[str, Tensor], None]
#: Of one block, named relative to the layer.
Weights = Mapping[str, Tensor]


def linear(block: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, block[f"{name}.weight"], block.get(f"{name}.bias"))


def ignore(site: str, x: Tensor) -> None:
    """Observe nothing."""
