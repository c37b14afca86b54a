import torch

from awqkit.search.equilibrium import Equilibrated, power_above


def test_the_next_power_of_two() -> None:
    x = torch.tensor([0.0, 1e-30, 0.75, 1.0, 3.0, 4.0, 1e30])
    found = power_above(x)
    assert found[:1].tolist() == [1.0] and found[2:6].tolist() == [1.0, 2.0, 4.0, 8.0]
    assert torch.equal(torch.frexp(found).mantissa, torch.full((7,), 0.5))


def test_moments_of_any_loudness_are_held_by_16_bits() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 16) @ torch.randn(16, 128) + torch.randn(2000, 128)
    x *= torch.exp(4 * torch.randn(128))
    x[:, 9] = 0
    gram = x.T @ x / 2000
    held = Equilibrated.of(gram)
    assert held.matrix.dtype == torch.float16 and held.matrix.abs().max() <= 1
    back = held.matrix.double() * torch.outer(held.root, held.root).double()
    loud = torch.outer(gram.diagonal(), gram.diagonal()).sqrt().clamp(min=1e-30)
    assert ((back - gram) / loud).abs().max() < 2**-11
    torch.testing.assert_close(held.diagonal * held.root**2, gram.diagonal())


def test_damping_is_added_to_the_diagonal_alone() -> None:
    torch.manual_seed(1)
    x = torch.randn(500, 128)
    gram = x.T @ x / 500
    held = Equilibrated.of(gram, 0.5)
    back = held.matrix.float() * torch.outer(held.root, held.root)
    torch.testing.assert_close(back - gram, 0.5 * torch.eye(128), rtol=0, atol=2e-3)


def test_silent_inputs_are_as_quiet_as_the_quietest() -> None:
    held = Equilibrated.of(torch.diag(torch.tensor([1e-10, 0.0, 4e-8])))
    assert held.root[1] == held.root[0] < held.root[2]
    assert held.matrix[1].abs().max() == 0
    silent = Equilibrated.of(torch.zeros(4, 4))
    assert torch.equal(silent.root, torch.ones(4)) and silent.matrix.abs().max() == 0
