"""Second moments of what the linears of a block read, gathered while it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from awqkit.decoder import Observer
from awqkit.errors import CalibrationError
from awqkit.search.moments import Moments, add_gram, mirror_gram

#: Runs part of a block on [batch, T, hidden], showing each site's input to the observer.
Half = Callable[[Tensor, Observer], Tensor]


class _Sums:
    """Running sums over tokens of x xᵀ (its upper half, and some of the lower) and |x|."""

    def __init__(self) -> None:
        self.gram = torch.zeros(())
        self.magnitude = torch.zeros(())
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        flat = x.flatten(0, -2)
        if not self.tokens:
            width = flat.shape[1]
            self.gram = torch.zeros(width, width, device=x.device)
            self.magnitude = torch.zeros(width, device=x.device)
        add_gram(self.gram, flat)
        self.magnitude += flat.abs().sum(0, dtype=torch.float32)
        self.tokens += flat.shape[0]

    def mean(self, site: str) -> Moments:
        """Consumes the sums."""
        # No entry exceeds the largest of the diagonal, so that one tells of all.
        if not self.gram.diagonal().isfinite().all():
            raise CalibrationError(
                f"The activations before {site} are not finite on the calibration text; "
                "the model's weights are damaged, or they overflow in this dtype: "
                "try --dtype float32."
            )
        mirror_gram(self.gram)
        return Moments(gram=self.gram.div_(self.tokens), magnitude=self.magnitude / self.tokens)


def capture_moments(
    half: Half, hidden: Tensor, sites: Collection[str], *, batch_size: int
) -> dict[str, Moments]:
    """Moments of each named site over hidden [rows, T, hidden], batch_size rows at a time.

    A site that saw no token is absent: the linears of an expert that nothing was routed to.
    """
    sums = {site: _Sums() for site in sites}

    def observe(site: str, x: Tensor) -> None:
        if site in sums:
            sums[site].add(x)

    for batch in hidden.split(batch_size):
        half(batch, observe)
    return {site: total.mean(site) for site, total in sums.items() if total.tokens}


def advance(half: Half, hidden: Tensor, *, batch_size: int) -> None:
    """Replace hidden [rows, T, hidden] by the half's output, in place."""
    for batch in hidden.split(batch_size):
        batch.copy_(half(batch, _ignore))


def _ignore(site: str, x: Tensor) -> None:
    """Observe nothing."""
