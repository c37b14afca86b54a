import pytest
import torch

from awqkit.calibration.capture import advance
from awqkit.calibration.row_copies import on_device

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_batches_are_all_rows_in_order(count: int) -> None:
    rows = torch.randn(count, 3, 5)
    batches = list(on_device(rows, 2, CPU))
    assert [len(batch) for batch in batches] == [2] * (count // 2) + [1] * (count % 2)
    assert torch.equal(torch.cat([torch.empty(0, 3, 5), *batches]), rows)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 1, 4, 23])
def test_rows_on_the_host_become_what_rows_on_the_device_do(count: int) -> None:
    """Enough work a batch that a copy which did not wait would be seen."""
    torch.manual_seed(count)
    device = torch.device("cuda")
    weight = torch.randn(2048, 2048, device=device) / 45
    rows = torch.randn(count, 256, 2048)
    far, near = torch.empty_like(rows, pin_memory=True).copy_(rows), rows.to(device)

    def half(x, observe):
        for _ in range(8):
            x = torch.tanh(x @ weight)
        return x

    for _ in range(3):
        for held in (far, near):
            advance(half, held, batch_size=2, device=device)
    assert torch.equal(far, near.cpu())
    assert torch.equal(torch.cat([near[:0], *(b.clone() for b in on_device(far, 2, device))]), near)
