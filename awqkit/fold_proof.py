"""The proof that folding has not changed what half a block computes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from awqkit.block_job import Block
from awqkit.calibration.capture import Half
from awqkit.errors import QuantizationError
from awqkit.search.products import exact_products

#: Relative error that folding may add to a half's output, in float32.
FOLD_TOLERANCE = 1e-4
#: Of the tokens of a mixture of experts: two experts that score alike may change places by the last
#: bit of a score, and then the token's output changes for good. Every other token tells a fault.
UNDECIDED_SHARE = 0.02


def prove_fold(
    half_of: Callable[[Block], Half],
    *,
    before: Block,
    after: Block,
    rows: Tensor,
    layer: int,
    has_experts: bool,
) -> None:
    """Raise QuantizationError where the half of `after` computes something else than `before`'s.

    half_of: the half of a block, in float32.  rows: [n, T, hidden] that enter it.
    """
    x = rows.float()
    with exact_products():
        expected = half_of(before)(x, _ignore) - x
        difference = (half_of(after)(x, _ignore) - x - expected).flatten(0, -2)
    noise, energy = difference.square().sum(-1), expected.flatten(0, -2).square().sum(-1)
    if has_experts:
        decided = noise.argsort()[: max(1, int(len(noise) * (1 - UNDECIDED_SHARE)))]
        noise, energy = noise[decided], energy[decided]
    error = float((noise.sum() / energy.sum().clamp(min=1e-24)).sqrt())
    if not error <= FOLD_TOLERANCE:
        raise QuantizationError(
            f"Layer {layer}: folding the scales changed the block's output by {error:.1e} "
            f"(relative), where {FOLD_TOLERANCE:.0e} is rounding. The family's description does "
            "not fit these weights; nothing was written. --no-search-scale quantizes without "
            "folding."
        )


def _ignore(site: str, x: Tensor) -> None:
    """Observe nothing."""
