"""Second moments of a site's input: all that the searches need to know of the tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from awqkit.search.products import product

#: Strips of rows into which sums are cut, so that little of a Gram matrix's lower half is computed,
#: and so that each may be computed elsewhere.
STRIPS = 8
#: Columns of a Gram matrix that an error is summed over at once, from the first row to theirs.
FORM_COLUMNS = 1024


@dataclass(frozen=True)
class Drift:
    """How far a partly quantized model has come from the unquantized one, seen with its inputs x.

    inputs: mean of (x* − x) xᵀ over the tokens, [in, in], x* what the unquantized model reads here.
    sums: mean of l xᵀ, [out, in], l what the outputs lack besides.  Both float32, and None where
    the other says all: of a linear whose output is added to h, l is W (x* − x) + h* − h, which is
    narrower than what it reads.
    """

    inputs: Tensor | None
    sums: Tensor | None

    def on_host(self) -> Drift:
        inputs, sums = (p if p is None else p.cpu() for p in (self.inputs, self.sums))
        return Drift(inputs, sums)


@dataclass(frozen=True)
class Moments:
    """gram: mean of x xᵀ over the tokens, [in, in]; magnitude: mean of |x|, [in]. Both float32.

    drift: where an unquantized model ran beside.
    """

    gram: Tensor
    magnitude: Tensor
    drift: Drift | None = None

    def on_host(self) -> Moments:
        """The matrices out of a GPU's way; products take them from there."""
        return replace(self.with_drift_on_host(), gram=self.gram.cpu())

    def of_outputs(self, part: slice) -> Moments:
        """The same inputs, and what some of the outputs are added to."""
        if self.drift is None or self.drift.sums is None:
            return self
        drift = Drift(inputs=self.drift.inputs, sums=self.drift.sums[part])
        return replace(self, drift=drift)

    def with_drift_on_host(self) -> Moments:
        """Its matrices, which are read but once, out of a GPU's way."""
        return self if self.drift is None else replace(self, drift=self.drift.on_host())


def add_gram(total: Tensor, x: Tensor, only: Collection[int] = range(STRIPS)) -> None:
    """Add the upper half of x xᵀ to total [in, in], float32, in place; x: [tokens, in].

    only: the strips that are added to, by number. Sums are float32. On a GPU activations of 16 bits
    are multiplied as they are, which is exact.
    """
    narrow = x.is_cuda and x.dtype != torch.float32
    x = x if narrow else x.float()
    for number, (rows, columns) in enumerate(gram_strips(len(total))):
        if number not in only:
            continue
        strip = total[rows, columns]
        left, right = x[:, rows].T, x[:, columns]
        if narrow:
            torch.addmm(strip, left, right, out_dtype=torch.float32, out=strip)
        else:
            strip.addmm_(left, right)


def add_product(
    total: Tensor, left: Tensor, right: Tensor, only: Collection[int] = range(STRIPS)
) -> None:
    """Add leftᵀ right to total [a, b], float32, in place, as add_gram does; both [tokens, …]."""
    narrow = right.is_cuda and right.dtype != torch.float32
    left, right = (left, right) if narrow else (left.float(), right.float())
    for number, rows in enumerate(product_strips(len(total))):
        if number not in only:
            continue
        strip = total[rows]
        if narrow:
            torch.addmm(strip, left[:, rows].T, right, out_dtype=torch.float32, out=strip)
        else:
            strip.addmm_(left[:, rows].T, right)


def mirror_gram(total: Tensor) -> None:
    """Complete what add_gram left out of total, in place."""
    for rows, columns in gram_strips(len(total)):
        total[columns, rows] = total[rows, columns].T.clone()


def gram_strips(width: int) -> Iterator[tuple[slice, slice]]:
    """Rows, and the columns from the first of these on, that cover the upper half of a square."""
    for rows in product_strips(width):
        yield rows, slice(rows.start, width)


def product_strips(height: int) -> Iterator[slice]:
    """STRIPS pieces of so many rows, or fewer."""
    step = -(-height // STRIPS)
    for start in range(0, height, step):
        yield slice(start, start + step)


def output_error(delta: Tensor, gram: Tensor) -> Tensor:
    """Mean squared error per token of the output: tr(Δ · E[x xᵀ] · Δᵀ), a scalar.

    delta: the weight's error [out, in]. Exact for a linear, at a cost free of the token count.
    """
    return row_errors(delta, gram).sum()


def row_errors(delta: Tensor, gram: Tensor) -> Tensor:
    """The same of each output by itself, [out]."""
    return halved_form(delta, gram, delta)


def halved_form(delta: Tensor, gram: Tensor, other: Tensor) -> Tensor:
    """Sums by rows [out] of which the total is tr(other · gram · Δᵀ), if otherᵀ Δ is symmetric.

    Of the symmetric gram its upper half alone is multiplied, and counts twice; other: [out, in].
    """
    if delta.device != gram.device:
        return product(delta, gram).mul_(other).sum(1)
    total = torch.zeros(len(delta), device=delta.device)
    for start in range(0, len(gram), FORM_COLUMNS):
        columns = slice(start, start + FORM_COLUMNS)
        reach = product(delta[:, :start], gram[:start, columns])
        reach = product(delta[:, columns], gram[columns, columns], onto=reach, beta=2.0)
        total += reach.mul_(other[:, columns]).sum(1)
    return total


def divided_by(moments: Moments, scale: Tensor) -> Moments:
    """The moments of inputs that were divided by scale [in]."""
    drift, magnitude = moments.drift, moments.magnitude / scale
    scale = scale.to(moments.gram.device)
    return Moments(
        gram=(moments.gram / scale).div_(scale.unsqueeze(1)),
        magnitude=magnitude,
        drift=drift and _divided_drift(drift, scale),
    )


def _divided_drift(drift: Drift, scale: Tensor) -> Drift:
    inputs, sums = drift.inputs, drift.sums
    return Drift(
        inputs=None if inputs is None else (inputs / scale).div_(scale.unsqueeze(1)),
        sums=None if sums is None else sums / scale,
    )
