import torch

from awqkit.checkpoint.layout import GROUP_SIZE, MAX_CODE
from awqkit.search.affine import (
    grid_for_range,
    in_groups,
    levels,
    min_max_grid,
    nearest_codes,
    round_to_nearest,
    rounding_offsets,
    storable,
    to_quantized_weight,
)


def test_storable_scales_mean_the_same_in_both_half_precisions() -> None:
    torch.manual_seed(0)
    scales = torch.cat((torch.rand(1000), torch.rand(1000) * 1e-5, torch.rand(100) * 1e5))
    kept = storable(scales)
    assert torch.equal(kept.half().float(), kept)
    assert torch.equal(kept.bfloat16().float(), kept)
    assert (kept > 0).all()
    normal = (scales > 2.0**-14) & (scales < 6e4)
    assert ((kept - scales).abs() <= scales * 2.0**-8)[normal].all()


def test_zero_is_always_a_level() -> None:
    torch.manual_seed(1)
    low = torch.randn(64, 3)
    grid = grid_for_range(low, low + torch.rand(64, 3))
    assert ((grid.zero >= 0) & (grid.zero <= MAX_CODE)).all()
    codes = nearest_codes(torch.zeros(64, 3, GROUP_SIZE), grid)
    assert torch.equal(levels(codes, grid), torch.zeros(64, 3, GROUP_SIZE))


def test_one_signed_groups_keep_their_precision() -> None:
    torch.manual_seed(2)
    weight = 1.0 + 0.1 * torch.rand(16, 2 * GROUP_SIZE)
    for signed in (weight, -weight):
        error = round_to_nearest(signed, min_max_grid(signed)) - signed
        assert error.norm() / signed.norm() < 0.03


def test_rounding_error_is_at_most_half_a_step() -> None:
    torch.manual_seed(3)
    weight = torch.randn(32, 4 * GROUP_SIZE) * torch.rand(32, 1) * 3
    grid = min_max_grid(weight)
    error = in_groups(round_to_nearest(weight, grid) - weight).abs().amax(-1)
    # Storing the scale in eight bits may cut up to 15 · 2⁻⁹ of a step off the widest code.
    assert (error <= grid.scale * 0.54).all()


def test_group_of_zeros_stays_zero() -> None:
    weight = torch.zeros(8, GROUP_SIZE)
    grid = min_max_grid(weight)
    assert grid.scale.isfinite().all()
    assert torch.equal(round_to_nearest(weight, grid), weight)


def test_integers_dequantize_to_the_levels() -> None:
    torch.manual_seed(4)
    weight = torch.randn(24, 3 * GROUP_SIZE)
    grid = min_max_grid(weight)
    codes = nearest_codes(in_groups(weight), grid).flatten(-2)
    stored = to_quantized_weight(codes, grid)
    assert torch.equal(stored.dequantize(), round_to_nearest(weight, grid))


def test_offsets_say_how_far_a_weight_lies_from_its_code() -> None:
    torch.manual_seed(7)
    weight = torch.randn(8, 256)
    grid = min_max_grid(weight)
    codes = nearest_codes(in_groups(weight), grid).flatten(-2)
    offsets = rounding_offsets(weight, codes, grid).float()
    scale = grid.scale.repeat_interleave(128, dim=1)
    level = levels(in_groups(codes), grid).flatten(-2)
    assert torch.allclose(level + offsets * scale, weight, atol=1e-3)
    other = rounding_offsets(weight, (codes + 3).clamp(max=15), grid)
    assert other.abs().max() <= 0.5
