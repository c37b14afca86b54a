import torch

from awqkit.search.moments import Moments, divided_by, output_error


def moments_of(x: torch.Tensor) -> Moments:
    return Moments(gram=x.T @ x / len(x), magnitude=x.abs().mean(0))


def test_error_from_moments_equals_error_from_tokens() -> None:
    torch.manual_seed(0)
    x, delta = torch.randn(500, 256) * torch.rand(256), torch.randn(40, 256)
    direct = (x @ delta.T).pow(2).sum(1).mean()
    torch.testing.assert_close(output_error(delta, moments_of(x).gram), direct)


def test_division_equals_dividing_the_inputs() -> None:
    torch.manual_seed(1)
    x, scale = torch.randn(100, 128), torch.rand(128) + 0.5
    expected, actual = moments_of(x / scale), divided_by(moments_of(x), scale)
    torch.testing.assert_close(actual.gram, expected.gram)
    torch.testing.assert_close(actual.magnitude, expected.magnitude)
