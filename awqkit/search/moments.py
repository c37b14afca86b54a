"""Second moments of a site's input: all that the searches need to know of the tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """gram: mean of x xᵀ over the tokens, [in, in]; magnitude: mean of |x|, [in]. Both float32."""

    gram: Tensor
    magnitude: Tensor


def output_error(delta: Tensor, gram: Tensor) -> Tensor:
    """Mean squared error per token of the output: tr(Δ · E[x xᵀ] · Δᵀ), a scalar.

    delta: the weight's error [out, in]. Exact for a linear, at a cost free of the token count.
    """
    return ((delta @ gram) * delta).sum()


def divided_by(moments: Moments, scale: Tensor) -> Moments:
    """The moments of inputs that were divided by scale [in]."""
    return Moments(
        gram=moments.gram / torch.outer(scale, scale), magnitude=moments.magnitude / scale
    )
