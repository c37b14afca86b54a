"""w4_linear: the torch reference and every compiled variant against the FP64 product."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE, MAX_CODE
from awqkit.checkpoint.quantized_weight import QuantizedWeight
from awqkit_runtime.kernels import native, reference
from awqkit_runtime.kernels.packed_w4 import unpack_w4
from awqkit_runtime.kernels.w4_linear import fastest_isa, pack_w4, w4_linear

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)

#: (tokens, out_features, in_features): every tile of tokens, outputs that end inside a block or a
#: strip, one group and many, several chunks of both lengths.
SHAPES = [
    *((tokens, 8 * tokens, 128) for tokens in range(1, 14)),
    *((tokens, 72, 384) for tokens in (23, 24, 25, 47, 48, 49, 97)),
    *((1, rows, 896) for rows in (8, 24, 56, 120, 136, 264)),
    *((300, 40, 256), (50, 24, 2816), (7, 1032, 1152), (1, 512, 4096), (2, 2048, 512)),
]


def each(names: tuple[str, ...]) -> pytest.MarkDecorator:
    """Parametrise over variants; those that this machine cannot run are skipped by name."""
    here = native.supported_isas()
    skip = pytest.mark.skip(reason="not on this processor or not built")
    variants = [name if name in here else pytest.param(name, marks=skip) for name in names]
    return pytest.mark.parametrize("isa", variants)


ISAS = each((native.REFERENCE, *native.ISAS))
COMPILED = each(native.ISAS)


@pytest.fixture(autouse=True)
def poisoned_outputs() -> Iterator[None]:
    """New tensors start as NaN, so that an output nobody wrote cannot pass for a result."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def random_weight(out_features: int, in_features: int, generator: torch.Generator):
    groups = (out_features, in_features // GROUP_SIZE)
    return QuantizedWeight(
        codes=torch.randint(
            MAX_CODE + 1, (out_features, in_features), generator=generator, dtype=torch.uint8
        ),
        scales=(0.001 + 0.03 * torch.rand(groups, generator=generator)).half(),
        zeros=torch.randint(MAX_CODE + 1, groups, generator=generator, dtype=torch.uint8),
    )


def relative_error(out: Tensor, expected: Tensor) -> float:
    """Frobenius error, over the norm, beyond what rounding each output to its dtype may cost."""
    rounding = torch.finfo(out.dtype).eps / 2 * expected.abs()
    error = ((out.double() - expected).abs() - rounding).clamp(min=0)
    return float(error.norm() / expected.norm())


@ISAS
@DTYPES
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_the_exact_product(isa: str, dtype: torch.dtype, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(7 + with_bias)
    for tokens, out_features, in_features in SHAPES:
        weight = random_weight(out_features, in_features, generator)
        x = torch.randn(tokens, in_features, generator=generator).to(dtype)
        bias = torch.randn(out_features, generator=generator).to(dtype) if with_bias else None
        expected = x.double() @ weight.dequantize(torch.float64).T
        if bias is not None:
            expected += bias.double()
        out = w4_linear(x, pack_w4(weight), bias, isa=isa)
        assert out.dtype == dtype
        shape = (tokens, out_features, in_features)
        assert relative_error(out, expected) <= 1e-6, shape


@ISAS
@pytest.mark.parametrize("zero", [0, MAX_CODE])
def test_one_signed_groups_and_one_signed_inputs_lose_no_digits(isa: str, zero: int) -> None:
    generator = torch.Generator().manual_seed(zero)
    weight = random_weight(64, 1024, generator)
    weight.zeros[::2] = zero
    x = 1 + torch.rand(9, 1024, generator=generator)
    expected = x.double() @ weight.dequantize(torch.float64).T
    assert relative_error(w4_linear(x, pack_w4(weight), isa=isa), expected) <= 1e-6


@COMPILED
@DTYPES
def test_a_token_does_not_depend_on_its_company_or_the_threads(
    isa: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(3)
    packed = pack_w4(random_weight(136, 1024, generator))
    x = torch.randn(60, 1024, generator=generator).to(dtype)
    together = w4_linear(x, packed, isa=isa)
    assert torch.equal(together, w4_linear(x, packed, isa=isa))
    for tokens in (1, 2, 3, 5, 7, 11, 25):
        assert torch.equal(w4_linear(x[:tokens], packed, isa=isa), together[:tokens])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(w4_linear(x, packed, isa=isa), together)
    finally:
        torch.set_num_threads(threads)


@ISAS
def test_takes_any_shape_and_stride(isa: str) -> None:
    generator = torch.Generator().manual_seed(4)
    weight = random_weight(48, 256, generator)
    packed, dense = pack_w4(weight), weight.dequantize()
    base = torch.randn(256, 5, 3, generator=generator)
    x = base.permute(2, 1, 0)
    assert not x.is_contiguous()
    torch.testing.assert_close(w4_linear(x, packed, isa=isa), x @ dense.T)
    every_other = torch.randn(7, 512, generator=generator)[:, ::2]
    torch.testing.assert_close(w4_linear(every_other, packed, isa=isa), every_other @ dense.T)
    torch.testing.assert_close(w4_linear(base[:, 0, 0], packed, isa=isa), base[:, 0, 0] @ dense.T)
    assert w4_linear(torch.empty(2, 0, 256), packed, isa=isa).shape == (2, 0, 48)


@COMPILED
@DTYPES
def test_writes_its_outputs_and_nothing_beside_them(isa: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    packed = pack_w4(random_weight(24, 384, generator))
    for tokens in (1, 6, 49):
        x = torch.randn(tokens, 384, generator=generator).to(dtype)
        memory = torch.full((tokens + 2, 24), torch.nan, dtype=dtype)
        out = memory[1:-1]
        native.w4_linear(isa, x, packed.codes, packed.group_params, None, out)
        assert out.isfinite().all()
        assert memory[0].isnan().all() and memory[-1].isnan().all()


@ISAS
@DTYPES
def test_large_and_tiny_activations_keep_their_relative_error(isa: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(6)
    weight = random_weight(32, 128, generator)
    for magnitude in (2.0**-4, 2.0**9):
        x = (torch.randn(5, 128, generator=generator) * magnitude).to(dtype)
        expected = x.double() @ weight.dequantize(torch.float64).T
        assert relative_error(w4_linear(x, pack_w4(weight), isa=isa), expected) <= 1e-6


@ISAS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_not_a_number_and_overflow_stay_visible(isa: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(8)
    packed = pack_w4(random_weight(16, 128, generator))
    x = torch.ones(3, 128, dtype=dtype)
    x[0, 5] = torch.nan
    x[1] = torch.finfo(dtype).max
    out = w4_linear(x, packed, isa=isa)
    assert out[0].isnan().all()
    assert not out[1].isfinite().all()
    assert out[2].isfinite().all()


def test_packing_loses_nothing_and_pads_whole_blocks() -> None:
    generator = torch.Generator().manual_seed(9)
    weight = random_weight(40, 384, generator)
    packed = pack_w4(weight)
    unpacked = unpack_w4(packed)
    assert torch.equal(unpacked.codes, weight.codes)
    assert torch.equal(unpacked.scales, weight.scales)
    assert torch.equal(unpacked.zeros, weight.zeros)
    assert packed.nbytes == 48 * (384 // 2 + 384 // GROUP_SIZE * 3)


def test_only_the_scalar_variant_leaves_many_tokens_to_torch() -> None:
    assert fastest_isa("scalar", 1) == "scalar"
    assert fastest_isa("scalar", 512) == native.REFERENCE
    assert {fastest_isa("avx2", tokens) for tokens in (1, 16, 512)} == {"avx2"}


def test_the_reference_unpacks_in_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(11)
    weight = random_weight(88, 256, generator)
    x = torch.randn(3, 256, generator=generator)
    monkeypatch.setattr(reference, "_PANEL_ELEMENTS", 256 * 40)
    out = w4_linear(x, pack_w4(weight), isa=native.REFERENCE)
    torch.testing.assert_close(out, x @ weight.dequantize().T)


def test_misuse_is_refused() -> None:
    packed = pack_w4(random_weight(16, 128, torch.Generator().manual_seed(10)))
    with pytest.raises(ValueError, match="127 inputs"):
        w4_linear(torch.ones(1, 127), packed, isa=native.cpu_isa())
    with pytest.raises(TypeError, match="float64"):
        w4_linear(torch.ones(1, 128, dtype=torch.float64), packed, isa=native.cpu_isa())
    with pytest.raises(ValueError, match="sse9"):
        w4_linear(torch.ones(1, 128), packed, isa="sse9")
