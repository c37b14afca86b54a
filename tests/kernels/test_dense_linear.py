"""A dense weight under activations of another dtype."""

from __future__ import annotations

import pytest
import torch

from awqkit_runtime.kernels import dense_linear as module
from awqkit_runtime.kernels.dense_linear import dense_linear


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_product_is_as_exact_as_float32(
    weight_dtype: torch.dtype, rows: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 1000)  # 72 rows of 40 columns: three chunks
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(3, rows, 40, generator=generator)
    weight = torch.randn(72, 40, generator=generator).to(weight_dtype)
    bias = torch.randn(72, generator=generator) if with_bias else None
    out = dense_linear(x, weight, bias)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert out.dtype == torch.float32
    assert out.shape == (3, rows, 72)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_equal_dtypes_stay_what_they_are() -> None:
    x, weight = torch.randn(4, 16).bfloat16(), torch.randn(8, 16).bfloat16()
    assert torch.equal(dense_linear(x, weight), torch.nn.functional.linear(x, weight))
