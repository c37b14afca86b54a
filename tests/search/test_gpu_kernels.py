"""The searches on a GPU, against the plain loops on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from awqkit.search.affine import GroupGrid, in_groups, levels, min_max_grid, round_to_nearest
from awqkit.search.clip import search_clip
from awqkit.search.moments import output_error
from awqkit.search.products import product
from awqkit.search.rounding import round_second_order
from awqkit.search.weighted_range import weighted_range

pytestmark = pytest.mark.gpu


def weight_and_gram(out: int, width: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(3000, 48) @ torch.randn(48, width) * 0.3 + torch.randn(3000, width)
    x *= torch.exp(torch.randn(width) * 0.7)
    return torch.randn(out, width) * 0.02, x.T @ x / len(x)


def grid_error(weight: Tensor, grid: GroupGrid, gram: Tensor) -> float:
    grid = GroupGrid(grid.scale.cpu(), grid.zero.cpu())
    return float(output_error(round_to_nearest(weight, grid) - weight, gram))


@pytest.mark.parametrize(("out", "tolerance"), [(1, 1.5), (8, 1.1), (200, 1.02)])
def test_clip_search_finds_what_the_loop_finds(out: int, tolerance: float) -> None:
    """Coordinate descent: a last bit can lead a row elsewhere, but not to worse on average."""
    torch.manual_seed(out)
    weight, gram = weight_and_gram(out, 512)
    plain, fast = search_clip(weight, gram), search_clip(weight.cuda(), gram.cuda())
    expected = grid_error(weight, plain, gram)
    assert grid_error(weight, fast, gram) < tolerance * expected
    assert expected < 0.8 * grid_error(weight, min_max_grid(weight), gram)


@pytest.mark.parametrize("out", [1, 8, 200])
def test_weighted_ranges_are_those_of_the_loop(out: int) -> None:
    torch.manual_seed(out)
    wide, importance = torch.randn(out, 512), torch.rand(128)
    wide[0] = 0.0
    weight = wide[:, 128:256]
    plain, fast = (
        weighted_range(weight, importance),
        weighted_range(wide.cuda()[:, 128:256], importance.cuda()),
    )
    assert (fast.scale.cpu() == plain.scale).float().mean() > 0.9
    assert (fast.zero.cpu() == plain.zero).float().mean() > 0.9
    assert fast.scale[0] == plain.scale[0] == 1 and fast.zero[0] == 0


@pytest.mark.parametrize("out", [1, 8, 200])
def test_second_order_rounding_agrees_with_the_loop(out: int) -> None:
    torch.manual_seed(out)
    weight, gram = weight_and_gram(out, 512)
    plain, fast = round_second_order(weight, gram), round_second_order(weight.cuda(), gram.cuda())

    def error(codes: Tensor, grid: GroupGrid) -> float:
        grid = GroupGrid(grid.scale.cpu(), grid.zero.cpu())
        rounded = levels(in_groups(codes.cpu()), grid).flatten(-2)
        return float(output_error(rounded - weight, gram))

    assert (fast[0].cpu() == plain[0]).float().mean() > 0.8
    assert error(*fast) == pytest.approx(error(*plain), rel=0.1)


def test_products_are_close_and_leave_the_setting_alone() -> None:
    torch.manual_seed(0)
    before = torch.backends.cuda.matmul.fp32_precision
    a, b = torch.randn(256, 1024), torch.randn(1024, 128)
    torch.testing.assert_close(product(a.cuda(), b.cuda()).cpu(), a @ b, rtol=1e-2, atol=0.2)
    assert torch.backends.cuda.matmul.fp32_precision == before
