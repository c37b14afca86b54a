import torch

from awqkit.search.moments import Drift, Moments, divided_by
from awqkit.search.target import aim_error, corrected_target


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


def outputs_error(weight, x, wanted) -> float:
    return float((x @ weight.T - wanted).square().sum(1).mean())


def test_the_target_brings_the_original_outputs_closer() -> None:
    weight, moments, x, wanted = drifted(0)
    before = outputs_error(weight, x, wanted)
    assert outputs_error(corrected_target(weight, moments), x, wanted) < 0.8 * before


def test_aim_error_ranks_weights_as_the_outputs_do() -> None:
    weight, moments, x, wanted = drifted(1)
    others = [weight + 0.05 * torch.randn_like(weight) for _ in range(3)]
    base = outputs_error(weight, x, wanted)
    for other in others:
        expected = outputs_error(other, x, wanted) - base
        assert abs(aim_error(other, weight, moments) - expected) < 1e-3 * base


def test_without_drift_the_weight_is_the_target() -> None:
    weight, moments, _, _ = drifted(2)
    still = Moments(moments.gram, moments.magnitude)
    assert corrected_target(weight, still) is weight
    assert aim_error(weight, weight, still) == 0


def test_scaled_inputs_have_the_same_outputs() -> None:
    weight, moments, x, wanted = drifted(3)
    scale = 0.2 * torch.rand(64) + 0.9
    target = corrected_target(weight * scale, divided_by(moments, scale))
    plain = corrected_target(weight, moments)
    errors = outputs_error(target, x / scale, wanted), outputs_error(plain, x, wanted)
    assert abs(errors[0] - errors[1]) < 0.02 * errors[1]


def test_silent_channels_keep_their_weights() -> None:
    weight, _, x, _ = drifted(4)
    x[:, 7] = 0
    drift = Drift(inputs=torch.zeros(64, 64), sums=torch.randn(32, 3000) @ x / 3000)
    silent = Moments(gram=x.T @ x / 3000, magnitude=x.abs().mean(0), drift=drift)
    assert torch.equal(corrected_target(weight, silent)[:, 7], weight[:, 7])
