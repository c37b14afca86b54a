"""The likeliest token of each row with nothing in between: what a graph can hold of sampling."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from awqkit_runtime.engine.launched_step import finite_rows
from awqkit_runtime.engine.logit_adjustments import needs_known_tokens
from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.runner import DecoderModel
from awqkit_runtime.kernels.greedy import greedy_

#: As choose_likeliest.
ChooseLikeliest = Callable[[DecoderModel, Tensor, Tensor], None]


def takes_likeliest(request: Request) -> bool:
    """Whether each of its tokens is the one with the largest of the model's own logits."""
    params = request.params
    return (
        params.greedy
        and params.logprobs is None
        and not params.logit_bias
        and not params.min_tokens
        and not needs_known_tokens(request)
    )


def choose_likeliest(decoder: DecoderModel, hidden: Tensor, outcome: Tensor) -> None:
    """Into outcome, int64 [rows, 2], contiguous: each row's token, and 1 where its logits are
    finite.

    hidden: [rows, hidden]. On a GPU without a copy of the logits where these are BF16.
    """
    capped = decoder.config.final_softcap is not None
    if hidden.is_cuda and hidden.dtype == torch.bfloat16 and not capped:
        greedy_(decoder.head_product(hidden), outcome)
        return
    logits = decoder.logits(hidden)
    torch.stack((logits.argmax(dim=-1), finite_rows(logits)), dim=1, out=outcome)
