import pytest
import torch

from awqkit.search.affine import GroupGrid, in_groups, levels, min_max_grid, nearest_codes
from awqkit.search.moments import output_error
from awqkit.search.refinement import descend, fit_scales, move_codes, refine


def problem(seed: int, rows: int = 24, width: int = 384) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    weight = torch.randn(rows, width)
    x = torch.randn(1500, width // 4) @ torch.randn(width // 4, width)
    x += 0.2 * torch.randn(1500, width)
    grid = min_max_grid(weight)
    return weight, nearest_codes(in_groups(weight), grid).flatten(-2), grid, x.T @ x / len(x)


def error_of(weight, codes, grid, gram) -> float:
    return float(output_error(levels(in_groups(codes), grid).flatten(-2) - weight, gram))


def test_every_step_lowers_the_error() -> None:
    weight, codes, grid, gram = problem(0)
    start = error_of(weight, codes, grid, gram)
    fitted = fit_scales(weight, codes, grid, gram, weight @ gram)
    after_fit = error_of(weight, codes, fitted, gram)
    after_moves = error_of(weight, descend(weight, codes, fitted, gram), fitted, gram)
    both = error_of(weight, *refine(weight, codes, grid, gram), gram)
    assert after_fit < start and after_moves < 0.5 * after_fit and both <= after_moves


def test_no_row_gets_worse_scales() -> None:
    weight, codes, grid, gram = problem(1, rows=200)
    delta = [
        levels(in_groups(codes), g).flatten(-2) - weight
        for g in (grid, fit_scales(weight, codes, grid, gram, weight @ gram))
    ]
    before, after = (((d @ gram) * d).sum(-1) for d in delta)
    assert (after <= before).all()


def test_fitted_scales_solve_the_least_squares_problem() -> None:
    """Against a dense solver on explicit activations, for one row."""
    torch.manual_seed(2)
    x, codes = torch.randn(2000, 256), torch.randint(0, 16, (1, 256)).float()
    grid = GroupGrid(torch.tensor([[0.05, 0.11]]), torch.tensor([[7.0, 8.0]]))
    weight = levels(in_groups(codes), grid).flatten(-2) + 0.01 * torch.randn(1, 256)
    steps = (in_groups(codes) - grid.zero.unsqueeze(-1))[0]
    columns = torch.stack([x[:, :128] @ steps[0], x[:, 128:] @ steps[1]], dim=1)
    expected = torch.linalg.lstsq(columns, x @ weight.T).solution.flatten()
    gram = x.T @ x / len(x)
    fitted = fit_scales(weight, codes, grid, gram, weight @ gram)
    assert torch.allclose(fitted.scale[0], expected, rtol=2**-8)


def test_no_single_move_is_left_that_helps() -> None:
    weight, codes, grid, gram = problem(3, rows=4, width=128)
    for _ in range(30):
        codes = descend(weight, codes, grid, gram)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(128)
    least = error_of(weight, codes, grid, damped)
    for row in range(4):
        for column in range(0, 128, 7):
            for step in (-1, 1):
                other = codes.clone()
                other[row, column] = (other[row, column] + step).clamp(0, 15)
                assert error_of(weight, other, grid, damped) >= least * (1 - 1e-5)


def test_silent_channels_and_zero_groups_have_an_outcome() -> None:
    weight, codes, grid, _ = problem(4)
    weight[:, :128] = 0
    refined, scales = refine(weight, codes, grid, torch.zeros(384, 384))
    assert refined.isfinite().all() and scales.scale.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 8, 37])
def test_the_kernel_moves_what_the_loop_moves(rows: int) -> None:
    from awqkit.search.refinement_kernel import move_codes as kernel

    torch.manual_seed(rows)
    x = torch.randn(400, 128)
    own = (x.T @ x / 400).cuda()
    codes = torch.randint(0, 16, (rows, 256)).float().cuda()[:, 128:]
    slope, scale = torch.randn(rows, 128).cuda(), torch.rand(rows).cuda() + 0.5
    expected, moved = move_codes(codes, slope, scale, own), kernel(codes, slope, scale, own)
    assert (expected == moved).float().mean() > 0.99
