"""Second moments of what the linears of a block read, gathered while it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, zip_longest

import torch
from torch import Tensor

from awqkit.calibration.row_copies import Returns, on_device
from awqkit.decoder import Observer
from awqkit.errors import CalibrationError
from awqkit.ranks.ranks import Ranks
from awqkit.search.moments import (
    STRIPS,
    Drift,
    Moments,
    add_gram,
    add_product,
    gram_strips,
    mirror_gram,
    product_strips,
)

#: Runs part of a block on [batch, T, hidden], showing each site's input to the observer.
Half = Callable[[Tensor, Observer], Tensor]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The unquantized model beside the one whose moments are gathered.

    half, hidden: the same part of the same block, unquantized, and the rows that enter it.
    sites: where drift is gathered, and the weight [out, in] of the linear there, in the dtype of
    the rows, if its outputs are added to them; else None.
    """

    half: Half
    hidden: Tensor
    sites: Mapping[str, Tensor | None]


@dataclass(frozen=True)
class _Shown:
    """What a site's linears read of a batch: x [tokens, in].

    drift: what the unquantized model's read here besides, likewise.  lost: what the rows
    [tokens, out] lack once the outputs were added to them. None where the other is gathered.
    """

    site: str
    x: Tensor
    drift: Tensor | None = None
    lost: Tensor | None = None


class _Sums:
    """Running sums over tokens of x xᵀ (its upper half, and some of the lower) and |x|.

    Every process sees all tokens and takes its strips of the sums.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._own = [n for n in range(STRIPS) if _owner(n, ranks.count) == ranks.rank]
        self.inputs: Tensor | None = None
        self.sums: Tensor | None = None
        self.gram = torch.zeros(())
        self.magnitude = torch.zeros(())
        self.tokens = 0

    def add(self, shown: _Shown) -> None:
        x = shown.x
        if not self.tokens:
            width = x.shape[1]
            self.gram = torch.zeros(width, width, device=x.device)
            self.magnitude = torch.zeros(width, device=x.device)
        add_gram(self.gram, x, self._own)
        self.magnitude += x.abs().sum(0, dtype=torch.float32)
        self.tokens += x.shape[0]
        if shown.drift is not None:
            self.inputs = self._added(self.inputs, shown.drift, x)
        if shown.lost is not None:
            self.sums = self._added(self.sums, shown.lost, x)

    def _added(self, total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
        if total is None:
            total = torch.zeros(left.shape[1], right.shape[1], device=right.device)
        add_product(total, left, right, self._own)
        return total

    def mean(self, site: str) -> Moments:
        """Consumes the sums."""
        self._exchange(self.gram, gram_strips(len(self.gram)))
        for total in (self.inputs, self.sums):
            if total is not None:
                whole = slice(0, total.shape[1])
                self._exchange(total, ((rows, whole) for rows in product_strips(len(total))))
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
            drift=self._drift(),
        )

    def _drift(self) -> Drift | None:
        if self.inputs is None and self.sums is None:
            return None
        means = (p if p is None else p.div_(self.tokens) for p in (self.inputs, self.sums))
        return Drift(*means)

    def _exchange(self, total: Tensor, strips: Iterable[tuple[slice, slice]]) -> None:
        """Complete total by what the other processes have summed."""
        if self._ranks.count > 1:
            for number, strip in enumerate(strips):
                source = _owner(number, self._ranks.count)
                total[strip] = self._ranks.broadcast(total[strip], source)


def _owner(strip: int, count: int) -> int:
    """The process that takes a strip: there and back again, as strips become shorter."""
    place = strip % (2 * count)
    return min(place, 2 * count - 1 - place)


def capture_moments(
    half: Half,
    hidden: Tensor,
    sites: Collection[str],
    *,
    batch_size: int,
    device: torch.device,
    ranks: Ranks,
    reference: Reference | None = None,
) -> dict[str, Moments]:
    """Moments of each named site over hidden [rows, T, hidden], batch_size rows at a time.

    hidden: those of this process, and the reference's likewise.  device: where halves run. A site
    that saw no token in any process is absent: the linears of an expert that nothing was routed to.
    """
    sums = {site: _Sums(ranks) for site in sorted(sites)}

    def add(shown: _Shown) -> None:
        sums[shown.site].add(shown)

    batches = on_device(hidden, batch_size, device)
    beside = () if reference is None else on_device(reference.hidden, batch_size, device)
    both = zip_longest(batches, beside)
    own = -(-len(hidden) // batch_size)
    for _ in range(ranks.broadcast(own, source=0)):  # the first holds the most
        shown: list[_Shown] = []
        for batch, its_original in islice(both, 1):
            # Alone, what is shown goes into the sums at once, and its memory with it.
            tell = add if ranks.count == 1 else shown.append
            _show_batch(half, batch, its_original, sites, reference, tell)
        for source in range(ranks.count if ranks.count > 1 else 0):
            for each in ranks.broadcast(shown, source):
                add(each)
    return {site: total.mean(site) for site, total in sums.items() if total.tokens}


def _show_batch(
    half: Half,
    batch: Tensor,
    beside: Tensor | None,
    sites: Collection[str],
    reference: Reference | None,
    tell: Callable[[_Shown], None],
) -> None:
    """Tell of one batch at each of the sites. beside: the same rows of the reference."""
    original: dict[str, Tensor] = {}
    lost = torch.zeros(())

    def remember(site: str, x: Tensor) -> None:
        if reference is not None and site in sites and site in reference.sites:
            original[site] = x.flatten(0, -2)

    def observe(site: str, x: Tensor) -> None:
        if site not in sites:
            return
        x = x.flatten(0, -2)
        if reference is None or site not in original:
            tell(_Shown(site, x))
        else:
            drift, weight = original.pop(site) - x, reference.sites[site]
            if weight is None:
                tell(_Shown(site, x, drift=drift))
            else:
                tell(_Shown(site, x, lost=torch.addmm(lost, drift, weight.T)))

    if reference is not None and beside is not None:
        _show(reference.half, beside, remember, reference.sites.keys() & set(sites))
        lost = (beside - batch).flatten(0, -2)
    _show(half, batch, observe, sites)


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


def advance(half: Half, hidden: Tensor, *, batch_size: int, device: torch.device) -> None:
    """Replace hidden [rows, T, hidden] by the half's output, in place. device: where it runs."""
    returns = Returns(device)
    batches = zip(hidden.split(batch_size), on_device(hidden, batch_size, device), strict=False)
    for place, batch in batches:
        returns.put(place, half(batch, _ignore))
    returns.wait()


def _ignore(site: str, x: Tensor) -> None:
    """Observe nothing."""
