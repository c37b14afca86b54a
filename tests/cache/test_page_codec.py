"""Page codes against a computation in float64 that shares nothing with the codec."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from awqkit_runtime.cache.page_codec import (
    dequantize_vectors,
    pack_codes,
    quantize_vectors,
    unpack_codes,
)

BITS = (8, 4)
LARGEST_HALF = 65504.0


def round_trip(vectors: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """(restored, scale, minimum), all float64."""
    codes, params = quantize_vectors(vectors, bits)
    assert codes.dtype == torch.uint8
    assert params.dtype == torch.float16
    assert int(codes.max()) < 2**bits
    restored = dequantize_vectors(codes.float(), params)
    scale, minimum = params.double().unbind(-1)
    expected = codes.double() * scale.unsqueeze(-1) + minimum.unsqueeze(-1)
    torch.testing.assert_close(restored.double(), expected, rtol=1e-6, atol=1e-7)
    return expected, scale, minimum


SPREADS = pytest.mark.parametrize("spread", [1e-4, 1.0, 300.0])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def normal_vectors(spread: float, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(int(spread) + 4)
    return (torch.randn(50, 3, 64, generator=generator) * spread + 0.3 * spread).to(dtype)


@SPREADS
@DTYPES
def test_8_bits_span_the_range_and_lose_half_a_step(spread: float, dtype: torch.dtype) -> None:
    vectors = normal_vectors(spread, dtype)
    restored, scale, minimum = round_trip(vectors, 8)
    exact = vectors.double()
    low, high = exact.amin(-1), exact.amax(-1)
    # FP16's relative step is 2^-10 and its smallest number 2^-24.
    torch.testing.assert_close(scale, (high - low) / 255, rtol=2.0**-8, atol=2.0**-23)
    torch.testing.assert_close(minimum, low, rtol=2.0**-11, atol=2.0**-25)
    bound = scale / 2 + minimum.abs() * 2.0**-11 + 2.0**-24
    assert bool(((restored - exact).abs() <= bound.unsqueeze(-1) * 1.001).all())


@SPREADS
@DTYPES
def test_4_bits_take_the_line_that_loses_least(spread: float, dtype: torch.dtype) -> None:
    vectors = normal_vectors(spread, dtype)
    restored, scale, minimum = round_trip(vectors, 4)
    exact = vectors.double()
    fitted, spanning = (
        (exact - line).square().sum(-1) for line in (restored, spanning_line(exact))
    )
    assert bool((fitted <= spanning * 1.05).all())  # FP16 parameters against exact ones.
    assert float(fitted.sum()) < 0.95 * float(spanning.sum())
    # Between the ends of the line every number has the nearest of the codes.
    ends = minimum.unsqueeze(-1), (minimum + 15 * scale).unsqueeze(-1)
    between = (exact >= ends[0]) & (exact <= ends[1])
    errors = torch.where(between, (restored - exact).abs(), torch.zeros(()))
    assert bool((errors <= scale.unsqueeze(-1) / 2 * 1.001).all())


def spanning_line(exact: Tensor) -> Tensor:
    """Rounded to 16 levels from minimum to maximum, in float64."""
    low, high = exact.amin(-1, keepdim=True), exact.amax(-1, keepdim=True)
    scale = (high - low) / 15
    return ((exact - low) / scale).round() * scale + low


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("constant", [0.0, 1.0, -3.14159, 1e-3, -7e-6, 1234.5])
def test_constant_vectors_survive(bits: int, constant: float) -> None:
    restored, scale, _ = round_trip(torch.full((2, 1, 32), constant), bits)
    assert bool((scale > 0).all())
    error = (restored - constant).abs().max()
    assert error <= abs(constant) * 2.0**-11 + 2.0**-24


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("magnitude", [1e5, 1e6, 1e30])
def test_values_beyond_half_saturate(bits: int, magnitude: float) -> None:
    vectors = torch.linspace(-magnitude, magnitude, 64).reshape(1, 1, 64)
    restored, scale, minimum = round_trip(vectors, bits)
    assert bool(restored.isfinite().all())
    assert abs(minimum.item()) <= LARGEST_HALF and scale.item() <= LARGEST_HALF
    if bits == 8:
        assert minimum.item() == -LARGEST_HALF
    # What lies inside the representable range keeps its place.
    reach = minimum + (2**bits - 1) * scale
    inside = (vectors >= minimum) & (vectors <= reach)
    assert bool(((restored - vectors).abs()[inside] <= scale.item() / 2 * 1.001).all())


@pytest.mark.parametrize("bits", BITS)
def test_infinities_stay_finite(bits: int) -> None:
    vectors = torch.randn(1, 1, 16)
    vectors[0, 0, 3], vectors[0, 0, 5] = torch.inf, -torch.inf
    restored, _, _ = round_trip(vectors, bits)
    assert bool(restored.isfinite().all())


@pytest.mark.parametrize("bits", BITS)
def test_one_outlier_does_not_touch_other_heads(bits: int) -> None:
    vectors = torch.randn(4, 2, 32, generator=torch.Generator().manual_seed(1))
    alone, _, _ = round_trip(vectors, bits)
    vectors[:, 0, 7] = 1e4
    together, _, _ = round_trip(vectors, bits)
    assert torch.equal(alone[:, 1], together[:, 1])


@pytest.mark.parametrize("bits", BITS)
def test_packing_is_lossless_and_laid_out_as_described(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 2, 32), dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (5, 2, 32 * bits // 8)
    if bits == 4:
        for element in range(16):
            byte = packed[..., element]
            assert torch.equal(byte % 16, codes[..., element])
            assert torch.equal(byte // 16, codes[..., element + 16])
    out = torch.full((5, 2, 32), torch.nan)
    unpack_codes(packed, bits, out)
    assert torch.equal(out, codes.float())
