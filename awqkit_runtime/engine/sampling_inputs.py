"""What requests ask of the sampler, as arrays: made on the host, copied to the device at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from awqkit_runtime.engine.host_arrays import Array, to_device
from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.engine.uniform import uniform_number

#: Of hotter rows too, all tokens are as likely; with an infinite temperature those that are ruled
#: out, whose logits are infinite, would become no numbers.
_HOTTEST = float(numpy.finfo(numpy.float32).max)


@dataclass(frozen=True, kw_only=True, eq=False)
class RankFilter:
    """Rows that draw from their likeliest tokens only."""

    #: int64 [filtered], counted among the rows that draw.
    rows: Tensor
    #: int64 [filtered, 1].
    top_k: Tensor
    #: float64 [filtered, 1], infinite where no share is asked for.
    top_p: Tensor
    #: The largest top_k: so many tokens have to be put in order.
    width: int


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingInputs:
    """The rows of a batch of logits whose tokens are drawn; the others take the likeliest one."""

    #: int64 [drawn]; None: all of them.
    rows: Tensor | None
    #: float32 [drawn, 1].
    temperature: Tensor
    #: float32 [drawn, 1]: log of min_p, the lowest scaled logit that counts; the best one is 0.
    lowest: Tensor
    #: float64 [drawn, 1], in [0, 1).
    uniform: Tensor
    filters: tuple[RankFilter, ...]


def sampling_inputs(
    requests: Sequence[Request], positions: Sequence[int], vocab: int, device: torch.device
) -> SamplingInputs | None:
    """For these rows, whose tokens come at these positions of their answers; None: all greedy."""
    drawing = [row for row, request in enumerate(requests) if not request.params.greedy]
    if not drawing:
        return None
    params = [requests[row].params for row in drawing]
    uniform = [uniform_number(requests[row].seed, positions[row]) for row in drawing]
    groups = list(_filtered(params, vocab))
    arrays = [
        _column([min(one.temperature, _HOTTEST) for one in params], numpy.float32),
        _column([_log(one.min_p) for one in params], numpy.float32),
        _column(uniform, numpy.float64),
        *(array for rows in groups for array in _filter_arrays(rows, params, vocab)),
        numpy.array(drawing, dtype=numpy.int64),
    ]
    temperature, lowest, numbers, *filters, rows = to_device(arrays, device)
    return SamplingInputs(
        rows=None if len(drawing) == len(requests) else rows,
        temperature=temperature,
        lowest=lowest,
        uniform=numbers,
        filters=tuple(
            RankFilter(
                rows=filters[3 * number],
                top_k=filters[3 * number + 1],
                top_p=filters[3 * number + 2],
                width=max(_top_k(params[row], vocab) for row in group),
            )
            for number, group in enumerate(groups)
        ),
    )


def _filtered(params: Sequence[SamplingParams], vocab: int) -> Iterator[list[int]]:
    """Rows with a top-k, and those that need the whole vocabulary in order for their top-p.

    Apart, since the first cost little and the others much.
    """
    widths = [_top_k(one, vocab) for one in params]
    bounded = [row for row, width in enumerate(widths) if width < vocab]
    whole = [row for row, one in enumerate(params) if one.top_p < 1 and widths[row] == vocab]
    yield from (rows for rows in (bounded, whole) if rows)


def _filter_arrays(
    rows: Sequence[int], params: Sequence[SamplingParams], vocab: int
) -> tuple[Array, Array, Array]:
    # A sum of rounded shares can pass 1 before the last one.
    shares = [params[row].top_p if params[row].top_p < 1 else math.inf for row in rows]
    return (
        numpy.array(rows, dtype=numpy.int64),
        _column([_top_k(params[row], vocab) for row in rows], numpy.int64),
        _column(shares, numpy.float64),
    )


def _top_k(params: SamplingParams, vocab: int) -> int:
    return min(params.top_k, vocab) if params.top_k > 0 else vocab


def _log(number: float) -> float:
    return math.log(number) if number > 0 else -math.inf


def _column(values: Sequence[float], dtype: type[numpy.generic]) -> Array:
    return numpy.array(values, dtype=dtype).reshape(-1, 1)
