import pytest
import torch

from awqkit.search import site
from awqkit.search.affine import min_max_grid, round_to_nearest
from awqkit.search.clip import search_clip
from awqkit.search.moments import Moments, output_error
from awqkit.search.site import Rows, choose_scale, round_linear


def moments_of(x: torch.Tensor) -> Moments:
    return Moments(gram=x.T @ x / len(x), magnitude=x.abs().mean(0))


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def loud_rows(seed: int) -> Moments:
    torch.manual_seed(seed)
    loudness = torch.ones(256)
    loudness[::32] = 30.0
    return moments_of(torch.randn(1500, 256) * loudness)


def test_a_scale_that_helps_is_chosen() -> None:
    rows = Rows(loud_rows(0), loud_rows(1))
    weights = [torch.randn(48, 256), torch.randn(16, 256)]
    choice = choose_scale(weights, rows, tie=same, realise=same)
    assert not choice.is_identity
    assert choice.scale[::32].mean() > choice.scale.median()


@pytest.mark.parametrize(("judged", "kept"), [(1.5, False), (0.5, True)])
def test_judging_rows_can_veto_a_scale(monkeypatch, judged: float, kept: bool) -> None:
    def errors(weights, rows, scale):
        same_as_before = bool((scale == 1).all())
        return site._Errors(2.0, 1.0) if same_as_before else site._Errors(1.0, judged)

    monkeypatch.setattr(site, "_clipped_errors", errors)
    rows = Rows(loud_rows(0), loud_rows(1))
    choice = choose_scale([torch.randn(48, 256)], rows, tie=same, realise=same)
    assert choice.is_identity is not kept


def test_judging_rows_can_veto_second_order_rounding() -> None:
    torch.manual_seed(3)
    weight = torch.randn(32, 256)
    mixed = torch.randn(2000, 32) @ torch.randn(32, 256) + 0.1 * torch.randn(2000, 256)
    agreeing = Rows(moments_of(mixed), moments_of(mixed))
    contrary = Rows(moments_of(mixed), moments_of(torch.randn(2000, 256)))
    assert "second-order" in round_linear(weight, agreeing).kept
    assert "second-order" not in round_linear(weight, contrary).kept


def test_every_stage_lowers_the_error() -> None:
    torch.manual_seed(4)
    weight = torch.randn(32, 256)
    mixed = torch.randn(2000, 64) @ torch.randn(64, 256) + 0.3 * torch.randn(2000, 256)
    rows = Rows(moments_of(mixed[:1000]), moments_of(mixed[1000:]))
    stages = (
        round_to_nearest(weight, min_max_grid(weight)),
        round_to_nearest(weight, search_clip(weight, rows.search.gram)),
        round_linear(weight, rows).weight(),
    )
    errors = [float(output_error(w - weight, rows.judge.gram)) for w in stages]
    assert errors[1] < 0.9 * errors[0] and errors[2] < 0.9 * errors[1]
