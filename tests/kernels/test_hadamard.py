"""The transform against the matrix that defines it, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from awqkit_runtime.kernels.hadamard import hadamard, hadamard_blocks

BLOCKS = {
    8: (8,),
    64: (64,),
    72: (32, 32, 8),
    80: (32, 32, 16),
    96: (32, 32, 32),
    100: (32, 32, 32, 4),
    128: (128,),
    256: (256,),
}


def matrix(head_dim: int) -> Tensor:
    """float64 [head_dim, head_dim]"""
    return torch.block_diag(*(sylvester(size) / size**0.5 for size in BLOCKS[head_dim]))


def sylvester(size: int) -> Tensor:
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    half = sylvester(size // 2)
    return torch.cat((torch.cat((half, half), dim=1), torch.cat((half, -half), dim=1)))


def vectors(head_dim: int) -> Tensor:
    return torch.randn(7, 3, head_dim, generator=torch.Generator().manual_seed(head_dim))


@pytest.mark.parametrize("head_dim", BLOCKS)
def test_is_the_matrix_of_its_blocks(head_dim: int) -> None:
    assert hadamard_blocks(head_dim) == BLOCKS[head_dim]
    x = vectors(head_dim)
    torch.testing.assert_close(hadamard(x), (x.double() @ matrix(head_dim).T).float())


@pytest.mark.parametrize("head_dim", BLOCKS)
def test_twice_is_nothing_and_products_stay(head_dim: int) -> None:
    x, y = vectors(head_dim), vectors(head_dim).flip(0)
    torch.testing.assert_close(hadamard(hadamard(x)), x)
    torch.testing.assert_close((hadamard(x) * hadamard(y)).sum(-1), (x * y).sum(-1))


def test_no_bit_depends_on_the_company() -> None:
    x = vectors(96)
    together = hadamard(x)
    for row, expected in zip(x, together, strict=True):
        assert torch.equal(hadamard(row), expected)


def test_narrow_numbers_are_transformed_in_float32() -> None:
    x = vectors(64).bfloat16()
    assert hadamard(x).dtype == torch.float32
    assert torch.equal(hadamard(x), hadamard(x.float()))


def test_a_lone_element_is_spread_evenly_over_its_block() -> None:
    x = torch.zeros(80)
    x[70] = 4.0
    assert torch.equal(hadamard(x).abs(), torch.tensor([0.0] * 64 + [1.0] * 16))
