"""Log-probabilities of the model's own distribution: before temperature, penalties and filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from torch import Tensor

from awqkit_runtime.engine.host_arrays import to_device, to_host
from awqkit_runtime.engine.request import Request, TokenLogprobs


@dataclass(frozen=True, kw_only=True, eq=False)
class PendingLogprobs:
    """Of the rows that ask for them, in the host's memory once the device has come so far."""

    #: How many of the likeliest tokens each row wants, by row.
    wanted: dict[int, int]
    #: [wanting rows, most wanted], likeliest first.
    values: Tensor
    token_ids: Tensor
    #: [wanting rows]: of the chosen token.
    chosen: Tensor

    def collect(self, tokens: Sequence[int]) -> list[TokenLogprobs | None]:
        """One entry for each row. tokens: the chosen ones of all rows.

        Waits for nothing: who knows the tokens has waited, and steps behind may still run.
        """
        found: list[TokenLogprobs | None] = [None] * len(tokens)
        lists = (self.token_ids.tolist(), self.values.tolist(), self.chosen.tolist())
        for (row, count), ids, values, chosen in zip(self.wanted.items(), *lists, strict=True):
            entry = dict(zip(ids[:count], values[:count], strict=True))
            entry.setdefault(tokens[row], chosen)
            found[row] = entry
        return found


def launch_logprobs(
    logits: Tensor, token_ids: Tensor, requests: Sequence[Request]
) -> PendingLogprobs | None:
    """Of these chosen tokens, int64 [rows]; None where no request asks. logits: [rows, vocab]."""
    asked = {row: request.params.logprobs for row, request in enumerate(requests)}
    vocab = logits.shape[-1]
    wanted = {row: min(count, vocab) for row, count in asked.items() if count is not None}
    if not wanted:
        return None
    (rows,) = to_device([numpy.array(list(wanted), dtype=numpy.int64)], logits.device)
    logprobs = logits.index_select(0, rows).log_softmax(dim=-1)
    values, ids = logprobs.topk(max(wanted.values()), dim=-1)
    chosen = logprobs.gather(1, token_ids.index_select(0, rows).unsqueeze(-1)).squeeze(-1)
    return PendingLogprobs(
        wanted=wanted, values=to_host(values), token_ids=to_host(ids), chosen=to_host(chosen)
    )
