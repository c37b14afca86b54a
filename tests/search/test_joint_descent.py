import torch

from awqkit.search.affine import in_groups, levels, min_max_grid, nearest_codes
from awqkit.search.joint_descent import descend_jointly
from awqkit.search.refinement import refine


def problem(seed: int, rows: int = 48, width: int = 256):
    torch.manual_seed(seed)
    weight = torch.randn(rows, width)
    x = torch.randn(1500, width // 4) @ torch.randn(width // 4, width) + 0.2 * torch.randn(1, width)
    g = torch.randn(1500, rows // 6) @ torch.randn(rows // 6, rows) + 0.2 * torch.randn(1500, rows)
    grid = min_max_grid(weight)
    return weight, grid, x.T @ x / len(x), g.T @ g / len(g)


def objective(weight, codes, grid, gram, outputs) -> float:
    delta = levels(in_groups(codes), grid).flatten(-2) - weight
    return float(((outputs @ delta @ gram) * delta).sum())


def test_errors_of_different_outputs_cancel() -> None:
    weight, grid, gram, outputs = problem(0)
    codes = nearest_codes(in_groups(weight), grid).flatten(-2)
    codes, grid = refine(weight, codes, grid, gram)
    before = objective(weight, codes, grid, gram, outputs)
    moved = descend_jointly(weight, codes, grid, gram, [outputs], seed=0)
    assert torch.equal(moved, moved.round()) and moved.min() >= 0 and moved.max() <= 15
    assert objective(weight, moved, grid, gram, outputs) < 0.7 * before


def test_independent_outputs_of_a_rounded_row_hardly_move() -> None:
    weight, grid, gram, _ = problem(1)
    codes = nearest_codes(in_groups(weight), grid).flatten(-2)
    for _ in range(6):
        codes, grid = refine(weight, codes, grid, gram)
    moved = descend_jointly(weight, codes, grid, gram, [torch.eye(48)], seed=0)
    assert (moved != codes).float().mean() < 0.02


def test_the_weight_given_and_silent_outputs_stay_finite() -> None:
    weight, grid, gram, _ = problem(2)
    codes = nearest_codes(in_groups(weight), grid).flatten(-2)
    before = codes.clone()
    moved = descend_jointly(weight, codes, grid, gram, [torch.zeros(48, 48)], seed=0)
    assert torch.equal(codes, before) and moved.isfinite().all()
