import torch

from awqkit.search.affine import levels, min_max_grid, nearest_codes
from awqkit.search.weighted_range import weighted_range


def error_of(weight: torch.Tensor, grid, importance: torch.Tensor) -> torch.Tensor:
    delta = levels(nearest_codes(weight, grid), grid) - weight
    return (delta.square() * importance).sum(-1)


def test_beats_minimum_and_maximum_in_every_row() -> None:
    torch.manual_seed(0)
    weight, importance = torch.randn(64, 128), torch.rand(128)
    plain = min_max_grid(weight)
    before = error_of(weight, type(plain)(plain.scale[:, 0], plain.zero[:, 0]), importance)
    after = error_of(weight, weighted_range(weight, importance), importance)
    assert (after <= before).all() and after.mean() < 0.9 * before.mean()


def test_outliers_that_cost_nothing_are_clipped() -> None:
    torch.manual_seed(1)
    weight, importance = torch.randn(16, 128), torch.ones(128)
    weight[:, 5], importance[5] = 3 * weight.abs().amax(1), 0.0
    without = error_of(weight[:, :5], weighted_range(weight, torch.ones(128)), importance[:5])
    ignoring = error_of(weight[:, :5], weighted_range(weight, importance), importance[:5])
    assert ignoring.mean() < 0.6 * without.mean()


def test_a_group_of_zeros_and_one_of_a_single_sign_have_an_outcome() -> None:
    torch.manual_seed(2)
    weight = torch.stack([torch.zeros(128), torch.rand(128) + 1])
    grid = weighted_range(weight, torch.ones(128))
    assert grid.scale.isfinite().all() and (grid.scale > 0).all()
    assert float(error_of(weight, grid, torch.ones(128))[0]) == 0
