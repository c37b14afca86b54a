"""What a linear's rounded weights should come close to, when its inputs are not what they were.

Li et al., 2025, "GPTAQ" (arXiv 2504.02692), aim at the unquantized model's outputs on its own
inputs. Here the aim is what the outputs are added to, too, so that a linear also makes good what
the residual stream has lost before it; and the closest weights are found in closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.search.factor import cholesky, solve
from awqkit.search.moments import Moments
from awqkit.search.products import product
from awqkit.search.rounding import damping_of


def corrected_target(weight: Tensor, moments: Moments) -> Tensor:
    """Weights T [out, in] that, unrounded, would bring the outputs closest to the original's.

    T x ≈ W x* + (h* − h) by least squares with a ridge: T = W + P · (H + λI)⁻¹, P = `pull`.
    weight: W, float32 [out, in].
    """
    if moments.drift is None:
        return weight
    damped = moments.gram.clone()
    silent = damped.diagonal() <= 0
    damping = damping_of(damped)
    damped.diagonal().add_(damping)
    factor = cholesky(damped)
    if factor is None:
        return weight
    correction = solve(factor, pull(weight, moments))
    return weight + correction.masked_fill_(silent, 0.0)


def pull(weight: Tensor, moments: Moments) -> Tensor:
    """P = E[(W (x* − x) + h* − h) xᵀ], [out, in]: what the outputs lack, seen with the inputs."""
    drift = moments.drift
    if drift is None:
        return torch.zeros_like(weight)
    towards = product(weight, drift.inputs)
    return towards if drift.sums is None else towards.add_(drift.sums.to(towards.device))


def aim_error(
    rounded: Tensor, weight: Tensor, moments: Moments, outputs: Tensor | None = None
) -> float:
    """E|rounded · x − (W x* + h* − h)|², less what no rounding changes; weight: W.

    outputs: weighs the outputs' errors by G [out, out] instead of alike.
    """
    delta = rounded - weight
    weighed = delta if outputs is None else product(outputs, delta)
    error = (product(delta, moments.gram) * weighed).sum()
    if moments.drift is not None:
        error = error - 2 * (weighed * pull(weight, moments)).sum()
    return float(error)
