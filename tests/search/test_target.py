import torch

from awqkit.search.moments import Drift, Moments, divided_by
from awqkit.search.target import Aim, corrected_target


def drifted(seed: int, tokens: int = 3000, width: int = 64, out: int = 32):
    """Inputs x, the original ones, and what outputs are added to, there and here."""
    torch.manual_seed(seed)
    original = torch.randn(tokens, width // 2) @ torch.randn(width // 2, width)
    x = original + 0.3 * torch.randn(tokens, width)
    lost = x @ torch.randn(width, out) * 0.05 + 0.1 * torch.randn(tokens, out)
    weight = torch.randn(out, width)
    moments = Moments(
        gram=x.T @ x / tokens,
        magnitude=x.abs().mean(0),
        drift=Drift(inputs=(original - x).T @ x / tokens, sums=lost.T @ x / tokens),
    )
    return weight, moments, x, original @ weight.T + lost


def target_of(weight, moments, judge=None):
    return corrected_target(Aim.of(weight, moments), Aim.of(weight, judge or moments))


def outputs_error(weight, x, wanted) -> float:
    return float((x @ weight.T - wanted).square().sum(1).mean())


def test_the_target_brings_the_original_outputs_closer() -> None:
    weight, moments, x, wanted = drifted(0)
    before = outputs_error(weight, x, wanted)
    assert outputs_error(target_of(weight, moments), x, wanted) < 0.8 * before


def test_aim_error_ranks_weights_as_the_outputs_do() -> None:
    weight, moments, x, wanted = drifted(1)
    others = [weight + 0.05 * torch.randn_like(weight) for _ in range(3)]
    base = outputs_error(weight, x, wanted)
    for other in others:
        expected = outputs_error(other, x, wanted) - base
        assert abs(Aim.of(weight, moments).error(other) - expected) < 1e-3 * base


def test_without_drift_the_weight_is_the_target() -> None:
    weight, moments, _, _ = drifted(2)
    still = Moments(moments.gram, moments.magnitude)
    assert target_of(weight, still) is weight
    assert Aim.of(weight, still).error(weight) == 0


def test_scaled_inputs_have_the_same_outputs() -> None:
    weight, moments, x, wanted = drifted(3)
    scale = 0.2 * torch.rand(64) + 0.9
    target = target_of(weight * scale, divided_by(moments, scale))
    plain = target_of(weight, moments)
    errors = outputs_error(target, x / scale, wanted), outputs_error(plain, x, wanted)
    assert abs(errors[0] - errors[1]) < 0.02 * errors[1]


def test_silent_channels_keep_their_weights() -> None:
    weight, _, x, _ = drifted(4)
    x[:, 7] = 0
    drift = Drift(inputs=torch.zeros(64, 64), sums=torch.randn(32, 3000) @ x / 3000)
    silent = Moments(gram=x.T @ x / 3000, magnitude=x.abs().mean(0), drift=drift)
    assert torch.equal(target_of(weight, silent)[:, 7], weight[:, 7])


def test_judging_rows_choose_the_ridge_or_none() -> None:
    weight, moments, x, _ = drifted(5)
    nothing_lost = Drift(inputs=torch.zeros(64, 64), sums=torch.zeros(32, 64))
    contrary = Moments(moments.gram, moments.magnitude, nothing_lost)
    assert target_of(weight, moments, contrary) is weight
    lost = 8 * torch.randn(3000, 32) + x[:, :32]
    few = Moments(
        gram=x[:80].T @ x[:80] / 80,
        magnitude=moments.magnitude,
        drift=Drift(inputs=torch.zeros(64, 64), sums=lost[:80].T @ x[:80] / 80),
    )
    judge = Moments(
        gram=moments.gram,
        magnitude=moments.magnitude,
        drift=Drift(inputs=torch.zeros(64, 64), sums=lost.T @ x / 3000),
    )
    own, judged = target_of(weight, few), target_of(weight, few, judge)
    assert (judged - weight).norm() < (own - weight).norm()
    assert Aim.of(weight, judge).error(judged) < Aim.of(weight, judge).error(own)
