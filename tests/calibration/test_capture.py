import pytest
import torch

from awqkit.calibration.capture import Reference, advance, capture_moments
from awqkit.errors import CalibrationError
from awqkit.ranks.ranks import ALONE

CPU = torch.device("cpu")


def doubling(x, observe):
    observe("in", x)
    observe("unasked", x)
    return 2 * x


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_moments_are_those_of_all_tokens(batch_size: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(5, 7, 96)
    flat = hidden.flatten(0, 1)
    moments = capture_moments(
        doubling, hidden, ["in"], batch_size=batch_size, device=CPU, ranks=ALONE
    )
    assert set(moments) == {"in"}
    torch.testing.assert_close(moments["in"].gram, flat.T @ flat / 35)
    torch.testing.assert_close(moments["in"].magnitude, flat.abs().mean(0))


def test_nothing_is_computed_after_the_last_site() -> None:
    def half(x, observe):
        observe("in", x)
        assert not observed_all, "the rest was computed"
        observe("late", x)
        raise AssertionError("the rest was computed")

    observed_all = False
    capture_moments(
        half, torch.randn(2, 3, 8), ["late", "in"], batch_size=1, device=CPU, ranks=ALONE
    )
    observed_all = True
    capture_moments(half, torch.randn(2, 3, 8), ["in"], batch_size=1, device=CPU, ranks=ALONE)


def test_a_site_without_tokens_is_absent() -> None:
    assert (
        capture_moments(
            doubling, torch.randn(2, 3, 8), ["elsewhere"], batch_size=1, device=CPU, ranks=ALONE
        )
        == {}
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_activations_that_overflow_are_refused_by_name(value: float) -> None:
    hidden = torch.randn(2, 3, 16)
    hidden[1, 2, 5] = value
    with pytest.raises(CalibrationError, match="before in are not finite"):
        capture_moments(doubling, hidden, ["in"], batch_size=2, device=CPU, ranks=ALONE)


def test_rows_are_replaced_in_place() -> None:
    hidden = torch.randn(5, 3, 16)
    before = hidden.clone()
    advance(doubling, hidden, batch_size=2, device=CPU)
    torch.testing.assert_close(hidden, 2 * before)


def test_what_outputs_lack_counts_their_inputs_drift_and_the_rows_loss() -> None:
    torch.manual_seed(2)
    hidden, beside, weight = torch.randn(4, 7, 24), torch.randn(4, 7, 24), torch.randn(24, 24)
    reference = Reference(half=doubling, hidden=beside, sites={"in": weight, "unasked": None})
    found = capture_moments(
        doubling,
        hidden,
        ["in", "unasked"],
        batch_size=3,
        device=CPU,
        ranks=ALONE,
        reference=reference,
    )
    x, lost = hidden.flatten(0, 1), (beside - hidden).flatten(0, 1)
    drift, beside_it = found["in"].drift, found["unasked"].drift
    assert drift is not None and drift.inputs is None and drift.sums is not None
    torch.testing.assert_close(drift.sums, (lost @ weight.T + lost).T @ x / 28)
    assert beside_it is not None and beside_it.sums is None and beside_it.inputs is not None
    torch.testing.assert_close(beside_it.inputs, lost.T @ x / 28)
