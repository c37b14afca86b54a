"""The kernels between the linears, each against its twin in float64 or torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from awqkit.decoder import apply_rotary
from awqkit.decoder import rms_norm as decoder_rms_norm
from awqkit_runtime.kernels import reference
from awqkit_runtime.kernels.rms_norm import add_rms_norm, rms_norm
from awqkit_runtime.kernels.rotary import HeadNorms, rotary_
from awqkit_runtime.kernels.silu_mul import silu_mul, silu_mul_launch
from tests.kernels.cuda_random import random_bf16, random_fp32

ROWS = (1, 2, 7, 300)
gpu = pytest.mark.gpu


@pytest.fixture
def poisoned_outputs():
    """New tensors start as NaN, so that an output nobody wrote cannot pass for a result."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def assert_close(out: Tensor, expected: Tensor) -> None:
    """Equal almost everywhere; elsewhere by two units in the last place, as it is rounded twice."""
    assert out.dtype == expected.dtype == torch.bfloat16
    unit = torch.finfo(torch.bfloat16).eps
    wide, wanted = out.double().cpu(), expected.double().cpu()
    torch.testing.assert_close(wide, wanted, rtol=2 * unit, atol=1e-6)
    assert float((wide != wanted).double().mean()) <= 0.02


@gpu
@pytest.mark.parametrize("unit_offset", [False, True])
@pytest.mark.parametrize("n", [8, 128, 896, 2056, 4096, 14336, 16384])
def test_rms_norm(n: int, unit_offset: bool, poisoned_outputs: None) -> None:
    weight = random_bf16(n, seed=n)
    for rows in ROWS:
        x, delta = (random_bf16(rows, n, seed=rows + i, scale=3.0) for i in (0, 1))
        kwargs = {"eps": 1e-5, "unit_offset": unit_offset}
        assert_close(
            rms_norm(x, weight, **kwargs), reference.rms_norm(x.cpu(), weight.cpu(), **kwargs)
        )
        total, out = add_rms_norm(x, delta, weight, **kwargs)
        expected = reference.add_rms_norm(x.cpu(), delta.cpu(), weight.cpu(), **kwargs)
        assert torch.equal(total.cpu(), expected[0])
        assert_close(out, expected[1])


def test_the_twin_of_the_norm_is_the_decoders() -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = torch.randn(5, 64, generator=generator), torch.randn(64, generator=generator)
    for unit_offset in (False, True):
        twin = reference.rms_norm(x, weight, 1e-6, unit_offset=unit_offset)
        assert torch.equal(twin, decoder_rms_norm(x, weight, 1e-6, unit_offset=unit_offset))


@gpu
@pytest.mark.parametrize("n", [8, 72, 2048, 11008, 14336, 18944])
def test_silu_mul(n: int, poisoned_outputs: None) -> None:
    for rows in ROWS:
        gate_up = random_bf16(rows, 2 * n, seed=rows, scale=4.0)
        gate_up[0, 0], gate_up[-1, -1] = -100.0, 100.0
        assert_close(silu_mul(gate_up), reference.silu_mul(gate_up.cpu()))


@pytest.mark.parametrize("n", [8, 72, 14336])
def test_a_launch_has_a_thread_for_all_numbers(n: int) -> None:
    for rows in (1, 9, 5000):
        entry, shape = silu_mul_launch(rows, n)
        in_thread = {"silu_mul": 8, "silu_mul_few": 2}[entry]
        assert shape.grid[0] == rows
        assert shape.grid[1] * shape.block[0] * in_thread >= n
    assert entry == "silu_mul" or rows * n < 2**17
    assert silu_mul_launch(1, 14336)[0] == "silu_mul_few"


@gpu
def test_silu_mul_gives_a_row_the_same_bits_in_any_company() -> None:
    gate_up = random_bf16(300, 2 * 2048, seed=1, scale=4.0)
    together = silu_mul(gate_up)
    assert silu_mul_launch(1, 2048)[0] != silu_mul_launch(300, 2048)[0]
    for row in (0, 150, 299):
        assert torch.equal(silu_mul(gate_up[row : row + 1].contiguous())[0], together[row])


@gpu
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("head_dim", "rotary_dim"), [(128, 128), (64, 64), (80, 80), (96, 24), (256, 128)]
)
def test_rotary(head_dim: int, rotary_dim: int, normed: bool, poisoned_outputs: None) -> None:
    query_heads, key_heads = 7, 2
    for rows in ROWS:
        qkv = random_bf16(rows, (query_heads + 2 * key_heads) * head_dim, seed=rows)
        angles = random_fp32(rows, rotary_dim // 2, seed=rows).repeat(1, 2) * 10
        norms = head_norms(head_dim) if normed else None
        got, expected = qkv.clone(), qkv.cpu()
        heads = {"query_heads": query_heads, "key_heads": key_heads, "head_dim": head_dim}
        rotary_(got, angles.cos(), angles.sin(), norms=norms, **heads)
        on_cpu = norms and HeadNorms(
            query=norms.query.cpu(), key=norms.key.cpu(), eps=norms.eps, unit_offset=False
        )
        cos, sin = angles.cos().cpu(), angles.sin().cpu()
        reference.rotary_(expected, cos, sin, norms=on_cpu, **heads)
        assert torch.equal(
            got.cpu()[:, -key_heads * head_dim :], qkv.cpu()[:, -key_heads * head_dim :]
        )
        # A difference of two products may be small beside them.
        error = (got.cpu().double() - expected.double()).abs()
        assert float(error.max()) <= 2**-8 * float(expected.double().abs().max())
        assert float((error > 0).double().mean()) <= 0.02


@gpu
def test_rotary_turns_rows_of_a_wider_tensor() -> None:
    wide = random_bf16(5, 1024, seed=1)
    before, angles = wide.clone(), random_fp32(5, 32, seed=1).repeat(1, 2)
    part = wide[:, 256:768]
    expected = part.clone()
    kwargs = {"query_heads": 4, "key_heads": 2, "head_dim": 64}
    rotary_(part, angles.cos(), angles.sin(), **kwargs)
    rotary_(expected, angles.cos(), angles.sin(), **kwargs)
    assert torch.equal(part, expected)
    assert torch.equal(wide[:, :256], before[:, :256])
    assert torch.equal(wide[:, 640:], before[:, 640:])


def test_the_twin_of_rotary_is_the_decoders() -> None:
    generator = torch.Generator().manual_seed(4)
    qkv = torch.randn(6, 4 * 32, generator=generator)
    angles = torch.randn(6, 8, generator=generator).repeat(1, 2)
    turned = qkv.clone()
    heads = {"query_heads": 2, "key_heads": 1, "head_dim": 32}
    reference.rotary_(turned, angles.cos(), angles.sin(), **heads)
    expected = apply_rotary(qkv[:, :96].unflatten(1, (3, 32)), angles.cos(), angles.sin())
    torch.testing.assert_close(turned[:, :96].unflatten(1, (3, 32)), expected)
    assert torch.equal(turned[:, 96:], qkv[:, 96:])


@gpu
def test_kernels_are_captured_and_follow_each_other() -> None:
    x, delta = random_bf16(3, 1024, seed=1), random_bf16(3, 1024, seed=2)
    weight = random_bf16(1024, seed=3)

    def chain() -> Tensor:
        total, out = add_rms_norm(x, delta, weight, 1e-5)
        for _ in range(20):
            total, out = add_rms_norm(total, out, weight, 1e-5)
        return silu_mul(out)

    chain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = chain()
    for seed in (4, 5):
        x.copy_(random_bf16(3, 1024, seed=seed))
        graph.replay()
        assert torch.equal(captured, chain())


@gpu
def test_no_rows_are_no_work() -> None:
    weight = random_bf16(64, seed=1)
    nothing = weight.new_empty((0, 64))
    assert add_rms_norm(nothing, nothing, weight, 1e-5)[1].shape == (0, 64)
    assert silu_mul(nothing).shape == (0, 32)


def head_norms(head_dim: int) -> HeadNorms:
    query, key = (random_bf16(head_dim, seed=i) for i in (1, 2))
    return HeadNorms(query=query, key=key, eps=1e-6, unit_offset=False)
