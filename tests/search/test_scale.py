import torch

from awqkit.search.moments import Moments
from awqkit.search.scale import normalised, rank_scales, rounding_loss


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def moments_of(x: torch.Tensor) -> Moments:
    return Moments(gram=x.T @ x / len(x), magnitude=x.abs().mean(0))


def test_search_protects_loud_channels() -> None:
    torch.manual_seed(0)
    loudness = torch.ones(256)
    loudness[::32] = 30.0
    moments = moments_of(torch.randn(2000, 256) * loudness)
    weights = [torch.randn(64, 256), torch.randn(32, 256)]
    choice, *others = rank_scales(weights, moments, tie=same, realise=same)
    assert not choice.is_identity
    identity = next(other for other in others if other.is_identity)
    assert choice.loss < 0.7 * identity.loss
    assert choice.scale[::32].mean() > 1.5 * choice.scale.median()
    assert choice.loss == rounding_loss(weights, moments.gram, choice.scale)


def test_identity_is_a_candidate() -> None:
    """Where every channel but one is dead, no scale can help."""
    weights = [torch.eye(128)[:8].contiguous()]
    gram = torch.zeros(128, 128)
    gram[0, 0] = 1.0
    moments = Moments(gram=gram, magnitude=gram.diagonal().sqrt())
    choice = rank_scales(weights, moments, tie=same, realise=same)[0]
    assert choice.is_identity and torch.equal(choice.scale, torch.ones(128))


def test_channels_that_never_fire_keep_scale_one() -> None:
    torch.manual_seed(1)
    x = torch.randn(300, 256) * torch.linspace(0.1, 5, 256)
    x[:, 7], x[:, 200] = 0.0, 0.0
    choice = rank_scales([torch.randn(32, 256)], moments_of(x), tie=same, realise=same)[0]
    assert choice.scale.isfinite().all() and (choice.scale > 0).all()
    assert choice.scale[7] == choice.scale[200] == 1.0


def test_silence_everywhere_is_the_identity() -> None:
    silent = Moments(gram=torch.zeros(128, 128), magnitude=torch.zeros(128))
    choice = rank_scales([torch.randn(8, 128)], silent, tie=same, realise=same)[0]
    assert choice.is_identity
    assert torch.equal(normalised(torch.zeros(128), torch.zeros(128)), torch.ones(128))


def test_zero_weights_have_an_outcome() -> None:
    torch.manual_seed(2)
    moments = moments_of(torch.randn(50, 128))
    choice = rank_scales([torch.zeros(8, 128)], moments, tie=same, realise=same)[0]
    assert choice.scale.isfinite().all() and choice.loss == 0.0
