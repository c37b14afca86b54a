"""The searches on a GPU, against the plain loops on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from awqkit.search.affine import (
    GroupGrid,
    in_groups,
    levels,
    min_max_grid,
    nearest_codes,
    round_to_nearest,
)
from awqkit.search.clip import search_clip
from awqkit.search.equilibrium import Equilibrated
from awqkit.search.joint_descent import descend_jointly
from awqkit.search.moments import output_error
from awqkit.search.products import product
from awqkit.search.refinement import normal_equations, refine
from awqkit.search.rounding import round_second_order
from awqkit.search.scale import rounding_loss
from awqkit.search.weighted_range import weighted_range

pytestmark = pytest.mark.gpu


def weight_and_gram(out: int, width: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(3000, 48) @ torch.randn(48, width) * 0.3 + torch.randn(3000, width)
    x *= torch.exp(torch.randn(width) * 0.7)
    return torch.randn(out, width) * 0.02, x.T @ x / len(x)


def grid_error(weight: Tensor, grid: GroupGrid, gram: Tensor) -> float:
    grid = GroupGrid(grid.scale.cpu(), grid.zero.cpu())
    return float(output_error(round_to_nearest(weight, grid) - weight, gram))


@pytest.mark.parametrize("out", [1, 8, 200])
def test_no_clip_search_is_worse_than_no_clip(out: int) -> None:
    """What a single row gains is chance, but every group's own range is among the first tried."""
    torch.manual_seed(out)
    weight, gram = weight_and_gram(out, 1280)
    unclipped = grid_error(weight, min_max_grid(weight), gram)
    for found in (search_clip(weight, gram), search_clip(weight.cuda(), gram.cuda())):
        assert grid_error(weight, found, gram) < unclipped


@pytest.mark.parametrize(("out", "tolerance"), [(40, 1.05), (200, 1.02)])
def test_clip_search_finds_what_the_loop_finds(out: int, tolerance: float) -> None:
    """Coordinate descent: a last bit can lead a row elsewhere, but not to worse on average."""
    torch.manual_seed(out)
    weight, gram = weight_and_gram(out, 1280)
    plain, fast = search_clip(weight, gram), search_clip(weight.cuda(), gram.cuda())
    expected = grid_error(weight, plain, gram)
    assert grid_error(weight, fast, gram) < tolerance * expected
    assert expected < 0.8 * grid_error(weight, min_max_grid(weight), gram)


def test_quiet_rows_are_clipped_as_well_as_loud_ones() -> None:
    """Their errors must not vanish in 16 bits: every row is compared with itself unclipped."""
    torch.manual_seed(24)
    weight, gram = weight_and_gram(24, 512)
    weight *= torch.logspace(-6, 2, 24).unsqueeze(1)
    grid = search_clip(weight.cuda(), gram.cuda())
    for row in range(24):
        one = slice(row, row + 1)
        found, own = GroupGrid(grid.scale[one], grid.zero[one]), weight[one]
        assert grid_error(own, found, gram) < 1.2 * grid_error(own, min_max_grid(own), gram)


@pytest.mark.parametrize("out", [1, 40, 200])
def test_joint_descent_lowers_the_objective_as_the_loop_does(out: int) -> None:
    """By other random numbers; of blocks of outputs that follow each other, the last one narrow.

    From codes as rounding leaves them, where ten seeds of the loop end within one percent.
    """
    torch.manual_seed(out)
    weight, gram = weight_and_gram(2 * out + 24, 512)
    grid = min_max_grid(weight)
    codes = nearest_codes(in_groups(weight), grid).flatten(-2)
    codes, grid = refine(weight, codes, grid, gram)
    common = 0.3 * torch.randn(3000, 8) @ torch.randn(8, len(weight))
    gradients = torch.randn(3000, len(weight)) + common
    parts = [slice(0, out), slice(out, 2 * out), slice(2 * out, len(weight))]
    outputs = [gradients[:, part].T @ gradients[:, part] / 3000 for part in parts]

    def objective(codes: Tensor) -> float:
        delta = levels(in_groups(codes.cpu()), grid).flatten(-2) - weight
        each = zip(outputs, (delta[part] for part in parts), strict=True)
        return sum(float(((moments @ rows @ gram) * rows).sum()) for moments, rows in each)

    plain = descend_jointly(weight, codes, grid, gram, outputs, seed=1)
    on_gpu = GroupGrid(grid.scale.cuda(), grid.zero.cuda())
    arguments = (weight.cuda(), codes.cuda(), on_gpu, gram.cuda(), [m.cuda() for m in outputs])
    fast = descend_jointly(*arguments, seed=1)
    assert torch.equal(fast, descend_jointly(*arguments, seed=1))
    assert fast.min() >= 0 and fast.max() <= 15 and torch.equal(fast, fast.round())
    assert objective(fast) < 0.95 * objective(codes)
    assert objective(fast) < 1.02 * objective(plain)


@pytest.mark.parametrize("out", [1, 40, 200])
def test_normal_equations_are_those_of_the_loop(out: int) -> None:
    torch.manual_seed(out)
    _, gram = weight_and_gram(out, 512)
    gram[5], gram[:, 5] = 0, 0  # an input that is silent
    steps = torch.randint(-15, 16, (out, 4, 128)).float()
    expected = normal_equations(steps, gram)
    from awqkit.search.normal_kernel import normal_equations as on_gpu

    found = on_gpu(steps.cuda(), Equilibrated.of(gram.cuda())).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=2e-3 * float(expected.max()))


@pytest.mark.parametrize("out", [1, 40, 200])
def test_losses_of_scales_are_those_of_plain_rounding(out: int) -> None:
    torch.manual_seed(out)
    weight, gram = weight_and_gram(out, 1280)
    weights = [weight, weight_and_gram(out + 3, 1280)[0]]
    from awqkit.search.scale_kernel import RoundingLosses

    losses = RoundingLosses([each.cuda() for each in weights], gram.cuda())
    for power in (0.0, 0.3, 0.8):
        scale = gram.diagonal().sqrt() ** power
        expected = rounding_loss(weights, gram, scale)
        assert losses.of(scale.cuda()) == pytest.approx(expected, rel=1e-2)


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
