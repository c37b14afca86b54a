"""The CUDA kernels of 4-bit linears against the FP64 product of the exactly dequantized weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from awqkit.checkpoint import QuantizedWeight, pack_weight
from awqkit_runtime.kernels import w4_prefill_choice
from awqkit_runtime.kernels.w4_plan import GpuModel, LaunchPlan, plan_w4_linear
from awqkit_runtime.kernels.w4_prefill_plan import plan_prefill
from awqkit_runtime.kernels.w4_repack import repack
from awqkit_runtime.kernels.w4_stationary_plan import plan_stationary
from awqkit_runtime.kernels.w4_tiled_linear import gpu_model, prepare, run_plan, w4_tiled_linear
from awqkit_runtime.kernels.w4_tiles import W4Tiles
from tests.kernels.cuda_random import random_bf16, random_weight

pytestmark = pytest.mark.gpu

#: Relative Frobenius error by kernel: with scales that BF16 holds, and with any of FP16. Rounding
#: the output alone costs 1.67e-3; the kernels for few tokens apply scales in FP32, the others
#: dequantize to BF16.
_EXACT, _DEQUANTIZED = (2e-3, 2e-3), (2.6e-3, 3.2e-3)
LIMITS = dict.fromkeys(("decode", "decode portable", "stationary", "batch"), _EXACT)
LIMITS |= {"prefill": _DEQUANTIZED, "mma": _DEQUANTIZED}
#: The architecture whose kernels run: this device's, and the oldest one's, which run here too.
ARCHITECTURES = ("here", "sm_80")

#: (out, in): linears of Llama 1B to 70B, Qwen3 0.6B to 32B, InternLM2.5 1.8B to 20B, and odd ones.
MODELS = [
    *((3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192)),
    *((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    *((10240, 8192), (57344, 8192), (8192, 28672)),
    *((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)),
    *((10240, 5120), (51200, 5120), (5120, 25600)),
    *((8192, 6144), (32768, 6144), (6144, 16384)),
]
ODD = [(8, 128), (24, 128), (136, 384), (1000, 256), (2056, 640), (4104, 1152), (72, 4096)]


@contextmanager
def poisoned() -> Iterator[None]:
    """New tensors start as NaN, so that an output nobody wrote cannot pass for a result."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def plan_for(arch: str, m: int, n: int, k: int) -> LaunchPlan:
    here = gpu_model(torch.device("cuda", torch.cuda.current_device()))
    if arch == "here":
        return plan_w4_linear(m, n, k, here)
    return plan_w4_linear(m, n, k, GpuModel(arch=arch, multiprocessors=here.multiprocessors))


def run(arch: str, x: Tensor, tiles: W4Tiles, bias: Tensor | None = None) -> Tensor:
    plan = plan_for(arch, x.shape[0], tiles.out_features, tiles.in_features)
    with poisoned():
        out = x.new_empty((x.shape[0], tiles.out_features))
    run_plan(plan, x, tiles, bias, out)
    return out


def weight_of(n: int, k: int, seed: int, *, bf16_scales: bool) -> tuple[QuantizedWeight, W4Tiles]:
    weight = random_weight(n, k, seed=seed, device="cuda")
    if bf16_scales:
        weight = QuantizedWeight(
            codes=weight.codes, scales=weight.scales.bfloat16().half(), zeros=weight.zeros
        )
    return weight, repack([pack_weight(weight)], torch.device("cuda", 0))


def relative_error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


def slack(outputs: int) -> float:
    """A few outputs may by chance be rounded worse than many are on average."""
    return 1.0 if outputs >= 10_000 else 1.0 + 4.0 / outputs**0.5


def check(arch: str, n: int, k: int, tokens: list[int], *, bf16_scales: bool, bias: bool) -> None:
    weight, tiles = weight_of(n, k, seed=n + k, bf16_scales=bf16_scales)
    dense = weight.dequantize(torch.float64)
    offsets = random_bf16(n, seed=1) if bias else None
    for m in tokens:
        x = random_bf16(m, k, seed=m)
        expected = x.double() @ dense.T
        if offsets is not None:
            expected += offsets.double()
        out = run(arch, x, tiles, offsets)
        limit = LIMITS[plan_for(arch, m, n, k).kernel][not bf16_scales]
        assert relative_error(out, expected) <= limit * slack(out.numel()), (m, n, k)
        assert torch.equal(run(arch, x, tiles, offsets), out), (m, n, k)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("n", "k"), ODD)
def test_odd_shapes(arch: str, n: int, k: int) -> None:
    check(
        arch, n, k, [1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 128, 129, 257], bf16_scales=False, bias=True
    )


@pytest.mark.parametrize("split", [1, 4, 8])
def test_builds_for_eight_tokens_at_odd_shapes(split: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the rule prefers the decode kernel."""
    here = gpu_model(torch.device("cuda", torch.cuda.current_device()))
    if here.arch != "sm_90a":
        pytest.skip("built for sm_90a only")
    builds = [v for v in w4_prefill_choice.VARIANTS if (v.tokens, v.split) == (8, split)]
    monkeypatch.setattr(w4_prefill_choice, "VARIANTS", builds)
    for n, k in ((8, 1024), (72, 4096), (1000, 1280), (4104, 1152)):
        weight, tiles = weight_of(n, k, seed=n, bf16_scales=False)
        dense = weight.dequantize(torch.float64)
        for m in (1, 5, 8):
            x = random_bf16(m, k, seed=m)
            with poisoned():
                out = x.new_empty((m, n))
            run_plan(plan_prefill(m, n, k, here).plan, x, tiles, None, out)
            error = relative_error(out, x.double() @ dense.T)
            assert error <= LIMITS["batch"][1] * slack(out.numel()), (m, n, k)


def test_stationary_inputs_at_odd_shapes() -> None:
    """So many row tiles that blocks draw some of them, and fewer than there are blocks; slices."""
    here = gpu_model(torch.device("cuda", torch.cuda.current_device()))
    if here.arch != "sm_90a":
        pytest.skip("built for sm_90a only")
    whole = ((8, 2176), (2056, 3072), (16_904, 4096), (30_000, 2560))
    for n, k in (*whole, (72, 8320), (3800, 8704), (520, 14_336), (5760, 16_384)):
        weight, tiles = weight_of(n, k, seed=n, bf16_scales=False)
        dense = weight.dequantize(torch.float64)
        for m in (2, 5, 8):
            timed = plan_stationary(m, n, k, here)
            assert timed is not None
            x = random_bf16(m, k, seed=m)
            for _ in range(2):  # The second finds what the first one left of its ticket.
                with poisoned():
                    out = x.new_empty((m, n))
                run_plan(timed.plan, x, tiles, None, out)
                error = relative_error(out, x.double() @ dense.T)
                assert error <= LIMITS["stationary"][1] * slack(out.numel()), (m, n, k)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_number_of_tokens(arch: str) -> None:
    tokens = [*range(1, 301), 512, 1000, 1024]
    check(arch, 1032, 1408, tokens, bf16_scales=True, bias=False)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_many_tokens(arch: str) -> None:
    check(arch, 6144, 4096, [512, 1000, 1024, 4096, 8192], bf16_scales=True, bias=True)


@pytest.mark.parametrize(("n", "k"), MODELS)
def test_shapes_of_models(n: int, k: int) -> None:
    check("here", n, k, [1, 3, 8, 16, 31, 64, 128, 300], bf16_scales=False, bias=False)
    check("here", n, k, [1, 16, 200], bf16_scales=True, bias=False)


def test_takes_any_leading_shape_and_stride() -> None:
    weight, tiles = weight_of(264, 384, seed=1, bf16_scales=True)
    dense = weight.dequantize(torch.float64)
    x = random_bf16(3, 384, 5, seed=2).transpose(1, 2)
    out = w4_tiled_linear(x, tiles)
    assert out.shape == (3, 5, 264)
    assert relative_error(out, x.double() @ dense.T) <= 2.6e-3
    assert w4_tiled_linear(x[:0], tiles).shape == (0, 5, 264)
    with pytest.raises(TypeError, match="BF16"):
        w4_tiled_linear(x.float(), tiles)


@pytest.mark.parametrize("m", [1, 16, 100, 700])
def test_is_captured_and_replayed(m: int) -> None:
    _, tiles = weight_of(512, 512, seed=3, bf16_scales=True)
    prepare(tiles)
    x = random_bf16(m, 512, seed=1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x
        for _ in range(4):
            y = w4_tiled_linear(y, tiles)
    for seed in (2, 3):
        x.copy_(random_bf16(m, 512, seed=seed))
        graph.replay()
        expected = x
        for _ in range(4):
            expected = w4_tiled_linear(expected, tiles)
        assert torch.equal(y, expected)
