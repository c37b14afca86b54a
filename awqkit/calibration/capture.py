"""Second moments of what the linears of a block read, gathered while it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.decoder import Observer
from awqkit.errors import CalibrationError
from awqkit.search.moments import Drift, Moments, add_gram, add_product, mirror_gram

#: Runs part of a block on [batch, T, hidden], showing each site's input to the observer.
Half = Callable[[Tensor, Observer], Tensor]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The unquantized model beside the one whose moments are gathered.

    half, hidden: the same part of the same block, unquantized, and the rows that enter it.
    device: where halves run.
    sites: where drift is gathered, and whether the linears' outputs are added to the rows there.
    """

    half: Half
    hidden: Tensor
    device: torch.device
    sites: Mapping[str, bool]


class _Sums:
    """Running sums over tokens of x xᵀ (its upper half, and some of the lower) and |x|."""

    def __init__(self) -> None:
        self.inputs: Tensor | None = None
        self.sums: Tensor | None = None
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

    def add_drift(self, x: Tensor, reference: Tensor, lost: Tensor | None) -> None:
        """x, reference: the inputs here and in the unquantized model; lost: h* − h, or None."""
        x = x.flatten(0, -2)
        self.inputs = _added(self.inputs, reference.flatten(0, -2) - x, x)
        if lost is not None:
            self.sums = _added(self.sums, lost.flatten(0, -2), x)

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
        return Moments(
            gram=self.gram.div_(self.tokens),
            magnitude=self.magnitude / self.tokens,
            drift=None
            if self.inputs is None
            else Drift(
                inputs=self.inputs.div_(self.tokens),
                sums=None if self.sums is None else self.sums.div_(self.tokens),
            ),
        )


def _added(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    if total is None:
        total = torch.zeros(left.shape[1], right.shape[1], device=right.device)
    add_product(total, left, right)
    return total


def capture_moments(
    half: Half,
    hidden: Tensor,
    sites: Collection[str],
    *,
    batch_size: int,
    reference: Reference | None = None,
) -> dict[str, Moments]:
    """Moments of each named site over hidden [rows, T, hidden], batch_size rows at a time.

    A site that saw no token is absent: the linears of an expert that nothing was routed to.
    """
    sums = {site: _Sums() for site in sites}
    original: dict[str, Tensor] = {}
    lost = torch.zeros(())

    def remember(site: str, x: Tensor) -> None:
        if reference is not None and site in sums and site in reference.sites:
            original[site] = x

    def observe(site: str, x: Tensor) -> None:
        if site in sums:
            sums[site].add(x)
        if reference is not None and site in original:
            is_added = reference.sites[site]
            sums[site].add_drift(x, original.pop(site), lost if is_added else None)

    for start in range(0, len(hidden), batch_size):
        batch = hidden[start : start + batch_size]
        if reference is not None:
            beside = reference.hidden[start : start + batch_size].to(reference.device)
            batch = batch.to(reference.device)
            _show(reference.half, beside, remember, sums.keys() & reference.sites.keys())
            lost = beside - batch
        _show(half, batch, observe, sites)
    return {site: total.mean(site) for site, total in sums.items() if total.tokens}


class _AllSeen(Exception):
    """Nothing more is to be observed."""


def _show(half: Half, batch: Tensor, observe: Observer, sites: Collection[str]) -> None:
    """Run a half until each of the sites was observed: its last linears need not be computed."""
    missing = set(sites)

    def watch(site: str, x: Tensor) -> None:
        observe(site, x)
        missing.discard(site)
        if not missing:
            raise _AllSeen

    with suppress(_AllSeen):
        half(batch, watch)


def advance(half: Half, hidden: Tensor, *, batch_size: int) -> None:
    """Replace hidden [rows, T, hidden] by the half's output, in place."""
    for batch in hidden.split(batch_size):
        batch.copy_(half(batch, _ignore))


def _ignore(site: str, x: Tensor) -> None:
    """Observe nothing."""
