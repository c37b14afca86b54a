import torch

from awqkit.search.affine import GroupGrid, in_groups, levels, min_max_grid, round_to_nearest
from awqkit.search.moments import output_error
from awqkit.search.rounding import round_second_order
from awqkit.search.weighted_range import weighted_range


def correlated(rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width // 4) @ torch.randn(width // 4, width) + 0.1 * torch.randn(
        rows, width
    )


def plain(value: torch.Tensor, cost: torch.Tensor) -> GroupGrid:
    return min_max_grid(value)


def error_of(codes: torch.Tensor, grid: GroupGrid, weight: torch.Tensor, gram) -> float:
    return float(output_error(levels(in_groups(codes), grid).flatten(-2) - weight, gram))


def test_beats_nearest_where_inputs_are_correlated() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(48, 256), correlated(2000, 256)
    gram, grid = x.T @ x / len(x), min_max_grid(weight)
    codes, ranges = round_second_order(weight, gram)
    assert torch.equal(codes, codes.round()) and codes.min() >= 0 and codes.max() <= 15
    nearest = float(output_error(round_to_nearest(weight, grid) - weight, gram))
    assert error_of(codes, ranges, weight, gram) < 0.5 * nearest


def test_a_range_is_chosen_for_what_is_left_to_round() -> None:
    torch.manual_seed(4)
    weight, x = torch.randn(48, 384) ** 3, correlated(2000, 384)
    gram = x.T @ x / len(x)
    errors = [
        error_of(*round_second_order(weight, gram, choose_range=choice), weight, gram)
        for choice in (plain, weighted_range)
    ]
    assert errors[1] < 0.95 * errors[0]


def test_is_nearest_where_inputs_are_independent() -> None:
    torch.manual_seed(1)
    weight = torch.randn(16, 256)
    codes, grid = round_second_order(weight, torch.eye(256) * 3, choose_range=plain)
    assert torch.equal(levels(in_groups(codes), grid).flatten(-2), round_to_nearest(weight, grid))


def test_agrees_with_the_textbook_loop() -> None:
    """Optimal-brain updates with an explicit inverse that shrinks column by column."""
    torch.manual_seed(2)
    weight = torch.randn(8, 128, dtype=torch.float64)
    x = correlated(600, 128).double()
    gram = x.T @ x / len(x)
    grid = min_max_grid(weight.float())
    codes, _ = round_second_order(weight.float(), gram.float(), choose_range=lambda *_: grid)

    order = gram.diagonal().argsort(descending=True)
    left = weight[:, order].clone()
    damped = gram[order][:, order] + 0.01 * gram.diagonal().mean() * torch.eye(128)
    expected = torch.empty_like(left)
    for column in range(128):
        inverse = torch.linalg.inv(damped[column:, column:])
        value = left[:, column]
        code = (value / grid.scale[:, 0] + grid.zero[:, 0]).round().clamp(0, 15)
        error = value - (code - grid.zero[:, 0]) * grid.scale[:, 0]
        left[:, column:] -= torch.outer(error / inverse[0, 0], inverse[0])
        expected[:, column] = code
    agreement = (codes[:, order] == expected).double().mean()
    assert agreement > 0.98


def test_dead_and_duplicate_channels_have_an_outcome() -> None:
    torch.manual_seed(3)
    weight, x = torch.randn(8, 128), torch.randn(40, 128)
    x[:, 3] = 0
    x[:, 10] = x[:, 11]
    codes, grid = round_second_order(weight, x.T @ x / 40)
    assert codes.isfinite().all() and grid.scale.isfinite().all()
    silent, grid = round_second_order(weight, torch.zeros(128, 128), choose_range=plain)
    assert torch.equal(levels(in_groups(silent), grid).flatten(-2), round_to_nearest(weight, grid))
