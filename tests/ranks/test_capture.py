"""Moments of shared rows are those that one process alone gathers, to the last bit."""

from __future__ import annotations

import pytest
import torch

from awqkit.calibration.capture import Reference, capture_moments
from awqkit.ranks.ranks import ALONE
from awqkit.row_share import share_of
from tests.ranks.threads import in_threads

WIDTH = 24


def half(x, observe):
    observe("in", torch.tanh(x))
    few = x.flatten(0, -2)
    observe("routed", few[few[:, 0] > 1.2])  # of some batches, no token at all
    observe("out", torch.cat([x, x * x], -1))
    return x


def gathered(rows, beside, ranks):
    share = share_of(len(rows), 2, rank=ranks.rank, count=ranks.count)
    held = list(share.rows)
    reference = Reference(
        half=half,
        hidden=share.split(beside[held])[0],
        sites={"in": torch.linspace(-1, 1, WIDTH * WIDTH).view(WIDTH, WIDTH), "out": None},
    )
    return capture_moments(
        half,
        share.split(rows[held])[0],
        {"in", "out", "routed"},
        batch_size=2,
        device=torch.device("cpu"),
        ranks=ranks,
        reference=reference,
    )


@pytest.mark.parametrize("count", [2, 3, 9])
def test_moments_are_the_same_to_the_last_bit(count: int) -> None:
    torch.manual_seed(1)
    rows = torch.randn(19, 5, WIDTH)
    beside = rows + 0.1 * torch.randn_like(rows)
    expected = gathered(rows, beside, ALONE)
    assert expected["in"].drift.inputs is None and expected["out"].drift.sums is None
    for found in in_threads(count, lambda ranks: gathered(rows, beside, ranks)):
        assert found.keys() == expected.keys()
        for site, moments in expected.items():
            theirs = found[site]
            assert torch.equal(theirs.gram, moments.gram)
            assert torch.equal(theirs.magnitude, moments.magnitude)
            if moments.drift is not None:
                for part in ("inputs", "sums"):
                    expected_part = getattr(moments.drift, part)
                    assert (expected_part is None) == (getattr(theirs.drift, part) is None)
                    if expected_part is not None:
                        assert torch.equal(getattr(theirs.drift, part), expected_part)
