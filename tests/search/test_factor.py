import pytest
import torch
from torch import Tensor

from awqkit.search import factor
from awqkit.search.factor import cholesky, solve


def positive(size: int) -> Tensor:
    x = torch.randn(2 * size, size)
    return x.T @ x / size


@pytest.mark.parametrize("panel", [1, 7, 16, 100])
def test_panels_give_the_factor(panel: int) -> None:
    torch.manual_seed(panel)
    matrix = positive(50)
    found = factor._in_place(matrix.clone(), panel, factor._subtract_exactly)
    torch.testing.assert_close(found.tril(), torch.linalg.cholesky(matrix), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("position", [0, 20, 49])
def test_what_is_not_positive_definite_has_none(position: int) -> None:
    torch.manual_seed(0)
    matrix = positive(50)
    matrix[position, position] = -1.0
    assert factor._in_place(matrix.clone(), 16, factor._subtract_exactly) is None
    assert cholesky(matrix.clone) is None


def test_a_direction_that_drowns_the_others_is_factorised_in_float32(monkeypatch) -> None:
    """One token's last bits, in TF32, outweigh what damps the others."""
    torch.manual_seed(0)
    x = torch.randn(3000, 16) @ torch.randn(16, 512) + 0.3 * torch.randn(3000, 512)
    x[0] *= 1000
    matrix = x.T @ x / len(x)
    matrix.diagonal().add_(0.01 * matrix.diagonal().mean())
    monkeypatch.setattr(factor, "product", product_of_eleven_bits)
    monkeypatch.setattr(factor, "_is_wide", lambda matrix: True)
    monkeypatch.setattr(factor, "PANEL", 128)
    assert factor._in_place(matrix.clone(), 128, factor._subtract_product) is None
    found = cholesky(matrix.clone)
    assert found is not None
    torch.testing.assert_close(found.tril(), torch.linalg.cholesky(matrix), rtol=1e-2, atol=1e-2)


def product_of_eleven_bits(a: Tensor, b: Tensor, *, onto: Tensor, alpha: float) -> Tensor:
    """As a GPU multiplies TF32."""
    return onto.add_(eleven_bits(a) @ eleven_bits(b), alpha=alpha)


def eleven_bits(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**11).round(), exponent - 11)


def test_solve_takes_the_lower_triangle_alone() -> None:
    torch.manual_seed(1)
    matrix, wanted = positive(50), torch.randn(7, 50)
    found = factor._in_place(matrix.clone(), 16, factor._subtract_exactly)
    torch.testing.assert_close(solve(found, wanted) @ matrix, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("step", [1, 16, 30, 50])
def test_blocks_solve_as_the_whole_does(step: int) -> None:
    torch.manual_seed(step)
    matrix, wanted = positive(50), torch.randn(7, 50)
    found = factor._in_place(matrix.clone(), 16, factor._subtract_exactly)
    kept = wanted.clone()
    solved = factor._solved_in_blocks(found, wanted, step)
    torch.testing.assert_close(solved @ matrix, wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(wanted, kept)


@pytest.mark.gpu
def test_a_gpu_solves_what_is_damped_as_a_cpu_does() -> None:
    torch.manual_seed(4)
    x = torch.randn(4000, 40) @ torch.randn(40, 2500) + 0.3 * torch.randn(4000, 2500)
    matrix = x.T @ x / 4000
    matrix.diagonal().add_(0.01 * matrix.diagonal().mean())
    true = torch.randn(60, 2500) / 50
    wanted = true @ matrix
    found = solve(torch.linalg.cholesky(matrix).cuda(), wanted.cuda()).cpu()
    error = found - true
    assert ((error @ matrix) * error).sum() < 1e-3 * ((true @ matrix) * true).sum()


@pytest.mark.gpu
def test_a_wide_matrix_is_factorised_where_it_lies(monkeypatch) -> None:
    torch.manual_seed(2)
    monkeypatch.setattr(factor, "WIDE", 2 * factor.PANEL)
    size = 2 * factor.PANEL + 130
    x = torch.randn(size, size, device="cuda")
    matrix = (x @ x.T / size).add_(torch.eye(size, device="cuda"))
    del x
    expected = matrix.clone()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = cholesky(lambda: matrix)
    assert torch.cuda.max_memory_allocated() - before < 0.9 * matrix.nbytes
    lower = found.tril()
    torch.testing.assert_close(lower @ lower.T, expected, rtol=1e-3, atol=2e-3)
