import torch

from awqkit.search.affine import min_max_grid, round_to_nearest
from awqkit.search.clip import search_clip
from awqkit.search.moments import group_blocks, output_error


def error_of(weight, grid, gram) -> float:
    return float(output_error(round_to_nearest(weight, grid) - weight, gram))


def test_never_worse_than_the_full_range_within_groups() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 256)
    x = torch.randn(1000, 256)
    gram = x.T @ x / 1000
    blocks = group_blocks(gram)
    block_gram = torch.block_diag(*blocks)
    clipped = error_of(weight, search_clip(weight, blocks), block_gram)
    assert clipped <= error_of(weight, min_max_grid(weight), block_gram)


def test_a_lone_outlier_on_a_quiet_channel_is_clipped_on_its_own_side() -> None:
    torch.manual_seed(1)
    weight = torch.rand(16, 128) - 0.5
    weight[:, 5] = 1.2
    gram = torch.eye(128)
    gram[5, 5] = 1e-4
    grid = search_clip(weight, group_blocks(gram))
    highest = (15 - grid.zero) * grid.scale
    lowest = -grid.zero * grid.scale
    assert (highest < 0.95).all(), "the outlier's side gives way"
    assert (lowest < -0.4).all(), "the other side keeps its range"
    assert error_of(weight, grid, gram) < 0.6 * error_of(weight, min_max_grid(weight), gram)


def test_zeros_and_silence() -> None:
    grid = search_clip(torch.zeros(8, 256), torch.zeros(2, 128, 128))
    assert grid.scale.isfinite().all() and (grid.scale > 0).all()
    assert ((grid.zero >= 0) & (grid.zero <= 15)).all()


def test_rows_do_not_depend_on_how_many_are_searched_at_once(monkeypatch) -> None:
    torch.manual_seed(2)
    weight, blocks = torch.randn(10, 256), torch.eye(128).expand(2, 128, 128)
    whole = search_clip(weight, blocks)
    monkeypatch.setattr("awqkit.search.clip.STEP_ELEMENTS", 3 * 256)
    parts = search_clip(weight, blocks)
    assert torch.equal(whole.scale, parts.scale) and torch.equal(whole.zero, parts.zero)
