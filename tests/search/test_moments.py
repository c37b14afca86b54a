import pytest
import torch

from awqkit.search.moments import Moments, add_gram, divided_by, mirror_gram, output_error


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


@pytest.mark.parametrize("width", [1, 7, 128, 384])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strips_give_the_whole_gram_matrix(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    x, total = torch.randn(90, width, dtype=dtype), torch.zeros(width, width)
    for part in x.split(40):
        add_gram(total, part)
    mirror_gram(total)
    torch.testing.assert_close(total, x.float().T @ x.float())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_gives_the_same_gram_matrix(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    x = torch.randn(3000, 640, device="cuda").to(dtype)
    total = torch.zeros(640, 640, device="cuda")
    for part in x.split(1000):
        add_gram(total, part)
    mirror_gram(total)
    exact = x.double().T @ x.double()
    torch.testing.assert_close(total.double(), exact, rtol=1e-5, atol=2e-2)


@pytest.mark.gpu
def test_moments_on_the_host_judge_what_is_on_the_device() -> None:
    torch.manual_seed(3)
    x, delta, scale = torch.randn(900, 5000), torch.randn(16, 5000), torch.rand(5000) + 0.5
    near = Moments(gram=(x.T @ x).cuda() / 900, magnitude=x.abs().mean(0).cuda())
    far = near.on_host()
    for moments in (far, divided_by(far, scale.cuda())):
        assert not moments.gram.is_cuda
    expected = output_error(delta.cuda(), near.gram)
    torch.testing.assert_close(output_error(delta.cuda(), far.gram), expected, rtol=1e-3, atol=0)
