"""What a linear's rounded weights should come close to, when its inputs are not what they were.

Li et al., 2025, "GPTAQ" (arXiv 2504.02692), aim at the unquantized model's outputs on its own
inputs. Here the aim is what the outputs are added to, too, so that a linear also makes good what
the residual stream has lost before it; and the closest weights are found in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from awqkit.search.factor import cholesky, solve
from awqkit.search.moments import Moments, halved_form
from awqkit.search.products import product
from awqkit.search.rounding import DAMPING, damping_of

#: Ridges that are tried, as shares of the mean diagonal: what was lost is small beside the inputs,
#: and a fit to it is soon a fit to the very tokens that were searched.
RIDGES = (DAMPING, 0.1, 1.0)


@dataclass(frozen=True, kw_only=True)
class Aim:
    """The outputs W x* + (h* − h) that a linear should give on some rows' inputs x.

    weight: W, float32 [out, in].  pull: E[(W (x* − x) + h* − h) xᵀ], [out, in], what the outputs
    lack, seen with the inputs; None where nothing was lost.
    """

    weight: Tensor
    moments: Moments
    pull: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, moments: Moments) -> Aim:
        drift = moments.drift
        if drift is None:
            return cls(weight=weight, moments=moments, pull=None)
        pull = torch.zeros_like(weight)
        if drift.inputs is not None:
            pull += product(weight, drift.inputs)
        if drift.sums is not None:
            pull += drift.sums.to(pull.device)
        return cls(weight=weight, moments=moments, pull=pull)

    def rows(self, part: slice) -> Aim:
        """Of some of the outputs."""
        pull = None if self.pull is None else self.pull[part]
        return Aim(weight=self.weight[part], moments=self.moments, pull=pull)

    def error(self, rounded: Tensor, outputs: Tensor | None = None) -> float:
        """E|rounded · x − (W x* + h* − h)|², less what no rounding changes.

        outputs: weighs the outputs' errors by G [out, out] instead of alike.
        """
        delta = rounded - self.weight
        weighed = delta if outputs is None else product(outputs, delta)
        error = halved_form(delta, self.moments.gram, weighed).sum()
        if self.pull is not None:
            error = error - 2 * (weighed * self.pull).sum()
        return float(error)


def corrected_target(search: Aim, judge: Aim) -> Tensor:
    """Weights T [out, in] that, unrounded, would bring the outputs closest to the original's.

    T x ≈ W x* + (h* − h) by least squares on the rows that are searched: T = W + P · (H + λI)⁻¹,
    P the pull, with the ridge λ that serves those that judge best, or W where none does.
    """
    if search.pull is None:
        return search.weight
    best, least = search.weight, judge.error(search.weight)
    for ridge in RIDGES:
        target = _least_squares(search, search.pull, ridge)
        if target is not None and (error := judge.error(target)) < least:
            best, least = target, error
    return best


def _least_squares(search: Aim, pull: Tensor, ridge: float) -> Tensor | None:
    gram = search.moments.gram
    silent = gram.diagonal() <= 0
    factor = cholesky(partial(_damped, gram, damping_of(gram, ridge)))
    if factor is None:
        return None
    return search.weight + solve(factor, pull).masked_fill_(silent, 0.0)


def _damped(gram: Tensor, damping: float) -> Tensor:
    damped = gram.clone()
    damped.diagonal().add_(damping)
    return damped
