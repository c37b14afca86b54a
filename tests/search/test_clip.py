import torch

from awqkit.search.affine import min_max_grid, round_to_nearest
from awqkit.search.clip import search_clip
from awqkit.search.moments import output_error


def error_of(weight, grid, gram) -> float:
    return float(output_error(round_to_nearest(weight, grid) - weight, gram))


def test_never_worse_than_the_full_range() -> None:
    torch.manual_seed(0)
    for correlation in (0.0, 0.5, 5.0):
        weight = torch.randn(64, 384)
        x = torch.randn(2000, 384) + correlation * torch.randn(2000, 1)
        gram = x.T @ x / 2000
        clipped = error_of(weight, search_clip(weight, gram), gram)
        assert clipped < error_of(weight, min_max_grid(weight), gram)


def test_groups_make_up_for_each_other() -> None:
    """A few directions run through all groups, where their errors can cancel."""
    torch.manual_seed(1)
    weight = torch.randn(64, 512)
    x = torch.randn(4000, 512) + torch.randn(4000, 3) @ torch.randn(3, 512)
    gram = x.T @ x / 4000
    alone = torch.zeros_like(gram)
    for start in range(0, 512, 128):
        block = slice(start, start + 128)
        alone[block, block] = gram[block, block]
    jointly = error_of(weight, search_clip(weight, gram), gram)
    assert jointly < 0.95 * error_of(weight, search_clip(weight, alone), gram)


def test_a_lone_outlier_on_a_quiet_channel_is_clipped_on_its_own_side() -> None:
    torch.manual_seed(1)
    weight = torch.rand(16, 128) - 0.5
    weight[:, 5] = 1.2
    gram = torch.eye(128)
    gram[5, 5] = 1e-4
    grid = search_clip(weight, gram)
    highest = (15 - grid.zero) * grid.scale
    lowest = -grid.zero * grid.scale
    assert (highest < 1.0).all(), "the outlier's side gives way"
    assert (lowest < -0.4).all(), "the other side keeps its range"
    assert error_of(weight, grid, gram) < 0.6 * error_of(weight, min_max_grid(weight), gram)


def test_zeros_and_silence() -> None:
    for weight in (torch.zeros(8, 256), torch.randn(8, 256)):
        grid = search_clip(weight, torch.zeros(256, 256))
        assert grid.scale.isfinite().all() and (grid.scale > 0).all()
        assert ((grid.zero >= 0) & (grid.zero <= 15)).all()


def test_rows_do_not_depend_on_how_many_are_searched_at_once(monkeypatch) -> None:
    torch.manual_seed(2)
    weight, gram = torch.randn(10, 256), torch.eye(256)
    whole = search_clip(weight, gram)
    monkeypatch.setattr("awqkit.search.clip.STEP_ELEMENTS", 3 * 256)
    parts = search_clip(weight, gram)
    assert torch.equal(whole.scale, parts.scale) and torch.equal(whole.zero, parts.zero)
