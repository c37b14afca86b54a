"""Second moments of a site's input: all that the searches need to know of the tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE


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


def group_blocks(gram: Tensor) -> Tensor:
    """The diagonal blocks of a Gram matrix [in, in], one a group: [groups, g, g]."""
    groups = gram.shape[0] // GROUP_SIZE
    blocks = gram.view(groups, GROUP_SIZE, groups, GROUP_SIZE)
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


def divided_by(moments: Moments, scale: Tensor) -> Moments:
    """The moments of inputs that were divided by scale [in]."""
    return Moments(
        gram=moments.gram / torch.outer(scale, scale), magnitude=moments.magnitude / scale
    )
