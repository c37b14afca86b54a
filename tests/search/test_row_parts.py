import pytest
import torch

from awqkit.search import row_parts as row_parts_module
from awqkit.search.affine import GroupGrid
from awqkit.search.moments import Drift, Moments
from awqkit.search.row_parts import row_parts
from awqkit.search.site import Rows, round_linear


def test_parts_cover_all_rows_and_are_no_larger_than_allowed(monkeypatch) -> None:
    monkeypatch.setattr(row_parts_module, "MOST_ELEMENTS", 1000)
    for rows, columns in [(1, 128), (7, 128), (8, 128), (64, 128), (10, 2000)]:
        parts = list(row_parts(rows, columns))
        assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
        assert all((part.stop - part.start) * columns <= max(1000, columns) for part in parts)


def moments(seed: int, outputs: int) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(64, 256, generator=torch.Generator().manual_seed(9))
    x = torch.randn(2000, 64, generator=generator) @ mixing
    x += 0.3 * torch.randn(2000, 256, generator=generator)
    before = x + 0.05 * torch.randn(x.shape, generator=generator)
    lost = 0.1 * torch.randn(2000, outputs, generator=generator)
    drift = Drift(inputs=(before - x).T @ x / len(x), sums=lost.T @ x / len(x))
    return Moments(gram=x.T @ x / len(x), magnitude=x.abs().mean(0), drift=drift)


@pytest.mark.parametrize("limit", [16 * 256, 20 * 256])
def test_each_part_of_a_large_weight_is_rounded_as_if_it_were_alone(monkeypatch, limit) -> None:
    """With 20 rows allowed, 48 become three parts, and the outputs' moments are cut across."""
    torch.manual_seed(5)
    weight, rows = torch.randn(48, 256), Rows(moments(0, 48), moments(1, 48))
    gradients = torch.randn(500, 48) @ torch.randn(48, 48)
    outputs = [gradients[:, part].T @ gradients[:, part] for part in (slice(0, 24), slice(24, 48))]
    monkeypatch.setattr(row_parts_module, "MOST_ELEMENTS", limit)
    whole = round_linear(weight, rows, outputs=outputs, seed=3)
    monkeypatch.setattr(row_parts_module, "MOST_ELEMENTS", 1 << 27)
    for start in range(0, 48, 16):
        part = slice(start, start + 16)
        inside = {
            0: [outputs[0][:16, :16]],
            16: [outputs[0][16:, 16:], outputs[1][:8, :8]],
            32: [outputs[1][8:, 8:]],
        }[start]
        alone = round_linear(
            weight[part],
            Rows(rows.search.of_outputs(part), rows.judge.of_outputs(part)),
            outputs=inside,
            seed=3,
        )
        assert torch.equal(alone.codes, whole.codes[part])
        grid = GroupGrid(whole.grid.scale[part], whole.grid.zero[part])
        assert torch.equal(alone.grid.scale, grid.scale)
        assert torch.equal(alone.grid.zero, grid.zero)
        assert set(alone.kept) <= set(whole.kept)
