"""A weight whose codes are to be found by gradient descent.

Behind every code is a continuous value that rounds to it. Its gradient is the rounded weight's, as
if rounding were the identity (Bengio et al., 2013, the straight-through estimator), and Adam
(Kingma and Ba, 2015) moves it, in steps of the group's scale. Scales and zero points stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.checkpoint import QuantizedWeight
from awqkit.checkpoint.layout import GROUP_SIZE, MAX_CODE

BETAS = (0.9, 0.99)
EPSILON = 1e-10
#: How far beyond the first and the last code a value may go.
MARGIN = 0.49
#: Share of the way from its code to the weight that was rounded at which a value begins. On the
#: code, all would cross to the next one in the same few steps; at the weight, too many at once.
START_SHARE = 0.6


@dataclass(frozen=True)
class Latent:
    """The value behind a code is codes + offset; what the optimizer knows has narrow types.

    stored: its codes change in place.  offset: float16.  momentum: bfloat16.  square: float32, of
    the gradients. All [out, in], on one device.
    """

    stored: QuantizedWeight
    offset: Tensor
    momentum: Tensor
    square: Tensor

    @classmethod
    def of(cls, weight: QuantizedWeight, offset: Tensor) -> Latent:
        """offset: from a code to the weight that was rounded, in steps [out, in]; at most ½.

        What lay near the middle between two levels is the easier to change.
        """
        codes = weight.codes.clone()
        return cls(
            stored=QuantizedWeight(codes=codes, scales=weight.scales, zeros=weight.zeros),
            offset=offset.half() * START_SHARE,
            momentum=torch.zeros_like(codes, dtype=torch.bfloat16),
            square=torch.zeros_like(codes, dtype=torch.float32),
        )

    def step(self, gradient: Tensor, *, rate: float, count: int) -> None:
        """Move against the gradient of the loss by the weight [out, in].

        rate: in codes.  count: of steps with this one.
        """
        scale = self.stored.scales.float().repeat_interleave(GROUP_SIZE, dim=1)
        by_code = gradient.float().mul_(scale)
        first, second = BETAS
        momentum = self.momentum.float().lerp_(by_code, 1 - first)
        self.momentum.copy_(momentum)
        self.square.mul_(second).addcmul_(by_code, by_code, value=1 - second)
        spread = (self.square / (1 - second**count)).sqrt_().add_(EPSILON)
        value = self.offset.float().add_(self.stored.codes)
        value.addcdiv_(momentum, spread, value=-rate / (1 - first**count))
        value.clamp_(-MARGIN, MAX_CODE + MARGIN)
        codes = value.round()
        self.stored.codes.copy_(codes)
        self.offset.copy_(value.sub_(codes))
