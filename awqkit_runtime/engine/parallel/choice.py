"""The likeliest token where every rank looks at its rows of the head: what a graph can hold of it.

A quantized head is not cut; then rank 0 looks at all of it. All ranks end with the same tokens, so
that each begins its next step by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.decoder import soft_cap
from awqkit_runtime.engine.launched_step import finite_rows
from awqkit_runtime.engine.parallel.shares import Share, head_rows
from awqkit_runtime.engine.runner import DecoderModel
from awqkit_runtime.kernels.dense_linear import dense_linear
from awqkit_runtime.kernels.greedy import greedy_
from awqkit_runtime.kernels.meetings import Meetings
from awqkit_runtime.kernels.rank_choice import rank_choice_
from awqkit_runtime.layers.linear import DenseLinear
from awqkit_runtime.models.decoder import Decoder


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadPart:
    """Of a rank. rows: dense, [n, hidden], from token first on; None: all of the head as it is."""

    first: int = 0
    rows: Tensor | None = None


def head_part(decoder: Decoder, share: Share) -> HeadPart | None:
    """What this rank looks at; None for nothing."""
    if not isinstance(decoder.head, DenseLinear):
        return HeadPart() if share.rank == 0 else None
    rows = head_rows(decoder.config.vocab_size, share)
    if not rows:
        return None
    weight = decoder.head.weight
    if len(weight) == len(rows):
        return HeadPart(first=rows.start, rows=weight)
    if share.rank and not decoder.config.tie_word_embeddings:
        return None  # The embedding, in place of a head that is quantized and so rank 0's alone.
    return HeadPart(first=rows.start, rows=weight[rows.start : rows.stop])


class SharedChoice:
    """choose_likeliest of all ranks together."""

    def __init__(self, part: HeadPart | None, meetings: Meetings) -> None:
        self._part = part
        self._meetings = meetings

    def __call__(self, decoder: DecoderModel, hidden: Tensor, outcome: Tensor) -> None:
        """Into outcome, int64 [rows, 2], on every rank; hidden [rows, hidden], BF16, the same."""
        if self._part is None:
            rank_choice_(self._meetings, None, None, outcome, first_token=0)
            return
        own, values = _likeliest(decoder, hidden, self._part)
        rank_choice_(self._meetings, own, values, outcome, first_token=self._part.first)


def _likeliest(decoder: DecoderModel, hidden: Tensor, part: HeadPart) -> tuple[Tensor, Tensor]:
    """As choose_likeliest tells it, counted from the part's first token; their logits, float32."""
    rows = part.rows
    logits = decoder.head_product(hidden) if rows is None else dense_linear(hidden, rows)
    own = torch.empty((hidden.shape[0], 2), dtype=torch.int64, device=hidden.device)
    if decoder.config.final_softcap is None:
        greedy_(logits, own)
    else:
        logits = soft_cap(logits.float(), decoder.config.final_softcap)
        torch.stack((logits.argmax(dim=-1), finite_rows(logits)), dim=1, out=own)
    return own, logits.gather(1, own[:, :1]).float().flatten()
