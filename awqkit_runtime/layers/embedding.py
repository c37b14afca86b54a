"""The table of the tokens' embeddings, and the head, which may be the same matrix."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from awqkit.checkpoint import PackedWeight, QuantizedWeight
from awqkit_runtime.layers.linear import LinearWeights, build_linear
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.layers.quantized_table import QuantizedTable

Matrix = Tensor | QuantizedWeight | PackedWeight

#: Values that are looked up at once in a quantized matrix, which bounds what unpacking takes.
_ELEMENTS_AT_ONCE = 2**22


class _Rows(Protocol):
    def rows(self, which: Tensor) -> QuantizedWeight: ...


class DenseEmbedding(nn.Module):
    """Token ids int64 [T] → [T, hidden] in the activations' dtype."""

    weight: Tensor

    def __init__(self, weight: Tensor, placement: Placement) -> None:
        super().__init__()
        self._dtype = placement.activation_dtype
        self.register_buffer("weight", placement.weight(weight))

    def forward(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self.weight).to(self._dtype)


class QuantizedEmbedding(nn.Module):
    """The same from a quantized matrix, of which only the tokens' rows are unpacked."""

    source: _Rows

    def __init__(self, source: nn.Module, hidden_size: int, placement: Placement) -> None:
        """source: a module with `rows`: a QuantizedTable, or the head that the matrix is, too."""
        super().__init__()
        self._hidden_size = hidden_size
        self.source = source  # type: ignore[assignment]
        self._dtype = placement.activation_dtype

    def forward(self, token_ids: Tensor) -> Tensor:
        step = max(1, _ELEMENTS_AT_ONCE // self._hidden_size)
        parts = [self._look_up(part) for part in token_ids.split(step)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _look_up(self, token_ids: Tensor) -> Tensor:
        return self.source.rows(token_ids).dequantize(self._dtype)


def build_ends(
    embedding: Matrix, head: Matrix | None, placement: Placement
) -> tuple[nn.Module, nn.Module]:
    """Embedding and head, [vocab, hidden] each; head: None where the embedding is both.

    Then the matrix is in memory once, as the head has it.
    """
    if isinstance(embedding, Tensor):
        dense = DenseEmbedding(embedding, placement)
        own = dense.weight if head is None else head
        return dense, build_linear(LinearWeights(weight=own), placement)
    if head is None:
        both = build_linear(LinearWeights(weight=embedding), placement)
        return QuantizedEmbedding(both, embedding.in_features, placement), both
    placed = embedding.to(placement.device)
    weight = placed.unpack() if isinstance(placed, PackedWeight) else placed
    table = QuantizedTable(weight, placement)
    alone = build_linear(LinearWeights(weight=head), placement)
    return QuantizedEmbedding(table, embedding.in_features, placement), alone
