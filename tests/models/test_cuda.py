"""The same models on a CUDA device, in float32 by plain torch, in BF16 by our kernels."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor

from awqkit.checkpoint import open_checkpoint, write_checkpoint
from awqkit_runtime.layers.linear import TiledLinear
from awqkit_runtime.layers.placement import Fusions
from awqkit_runtime.models.loader import LanguageModel, load, load_decoder
from tests.checkpoint.folders import quantized_weights, write_quantized_ends
from tests.models.paged_generation import generate_greedily
from tests.models.test_decoder import CONFIG, build, logits, random_weights
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.gpu
PROMPT = torch.randint(3, 320, (150,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(params=["llama", "mistral", "qwen3", "phi3", "gemma2", "gemma3", "qwen2_moe"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    windows = {"sliding_window": 70} if request.param == "mistral" else {}
    return write_tiny_model(tmp_path / "model", request.param, **windows)


def test_logits_equal_those_of_the_cpu(folder: Path) -> None:
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    expected = load(folder, device="cpu", dtype="float32")(ids)
    got = load(folder, device="cuda", dtype="float32")(ids)
    assert got.device.type == "cuda"
    assert (got.cpu() - expected).abs().max() <= 1e-4
    half = load(folder, device="cuda", dtype="bfloat16")(ids).cpu()
    # In the mean: where two experts score alike, a token's may be another one in BF16.
    assert (half - expected).norm() <= 0.1 * expected.norm()


@pytest.mark.parametrize("quant_policy", [0, 8, 4, "k8v4"])
def test_pages_give_the_tokens_of_the_cpu(folder: Path, quant_policy: int | str) -> None:
    on_cpu, on_cuda = (
        generate_greedily(
            load_decoder(folder, device=device, dtype="float32"),
            PROMPT,
            30,
            quant_policy=quant_policy,
            chunk=64,
        )
        for device in ("cpu", "cuda")
    )
    assert on_cuda == on_cpu


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_packed_weights_give_the_logits_of_the_cpu(share: float) -> None:
    weights = random_weights(share, seed=int(share * 10))
    ids = torch.randint(0, CONFIG.vocab_size, (2, 30), generator=torch.Generator().manual_seed(1))
    on_cuda = logits(build(weights, device="cuda"), ids.cuda())
    torch.testing.assert_close(on_cuda.cpu(), logits(build(weights), ids), rtol=1e-3, atol=1e-3)


#: Roundings send a token to other experts now and then.
LIMITS = {"qwen3_moe": 0.15}


@pytest.fixture(params=["llama", "internlm2", "qwen2", "qwen3", "qwen3_moe", "gemma2"])
def int4_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    source = open_checkpoint(write_tiny_model(tmp_path / "plain", request.param))
    weights = quantized_weights(source)
    write_checkpoint(tmp_path / "int4", weights, source=source, format="compressed-tensors")
    folder = tmp_path / "int4"
    return folder.rename(tmp_path / str(request.param))


def limit_of(folder: Path) -> float:
    return LIMITS.get(folder.name, 0.03)


def relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a.cpu().double() - b.cpu().double()).norm() / b.cpu().double().norm())


def test_int4_weights_run_on_tiles_and_give_the_logits_of_the_cpu(int4_folder: Path) -> None:
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    model = load(int4_folder, device="cuda", dtype="bfloat16")
    assert any(isinstance(module, TiledLinear) for module in model.modules())
    expected = load(int4_folder, device="cpu", dtype="float32")(ids)
    assert relative_difference(model(ids), expected) <= limit_of(int4_folder)
    assert torch.equal(model(ids), model(ids))


@pytest.mark.filterwarnings("ignore:There is no kernel yet.*a head in 8 bits")
@pytest.mark.parametrize(("bits", "tied"), [(4, True), (8, True), (4, False), (8, False)])
def test_quantized_ends_give_the_logits_of_the_cpu(tmp_path: Path, bits: int, tied: bool) -> None:
    """In float32 and FP16 by torch, in BF16 where kernels read what they can."""
    folder = write_quantized_ends(tmp_path, embedding_bits=bits, head_bits=12 - bits, tied=tied)
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    expected = load(folder, device="cpu", dtype="float32")(ids)
    for dtype, limit in (("float32", 1e-4), ("float16", 0.01), ("bfloat16", 0.05)):
        model = load(folder, device="cuda", dtype=dtype)
        assert relative_difference(model(ids), expected) <= limit


@pytest.mark.parametrize("fusion", [field.name for field in fields(Fusions)])
def test_a_fusion_changes_nothing_but_roundings(int4_folder: Path, fusion: str) -> None:
    ids = torch.tensor([PROMPT])
    together, singly = (
        LanguageModel(load_decoder(int4_folder, device="cuda", dtype="bfloat16", fusions=fusions))(
            ids
        )
        for fusions in (Fusions(), Fusions(**{fusion: False}))
    )
    assert relative_difference(together, singly) <= limit_of(int4_folder)


def test_float16_runs_without_tiles(int4_folder: Path) -> None:
    ids = torch.tensor([PROMPT])
    model = load(int4_folder, device="cuda", dtype="float16")
    assert not any(isinstance(module, TiledLinear) for module in model.modules())
    expected = load(int4_folder, device="cpu", dtype="float32")(ids)
    assert relative_difference(model(ids), expected) <= limit_of(int4_folder)


def test_loading_holds_no_more_than_one_layer_twice(tmp_path: Path) -> None:
    shape = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "head_dim": 128}
    source = open_checkpoint(write_tiny_model(tmp_path / "plain", "llama", **shape))
    write_checkpoint(tmp_path / "int4", quantized_weights(source), source=source, format="awq")
    load(tmp_path / "int4", device="cuda", dtype="bfloat16")  # Workspace and kernels are there.
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = load(tmp_path / "int4", device="cuda", dtype="bfloat16")
    kept = torch.cuda.memory_allocated() - before
    peak = torch.cuda.max_memory_allocated() - before
    layer = sum(m.tiles.nbytes for m in model.modules() if isinstance(m, TiledLinear)) // 6
    assert layer > 2**20
    assert peak - kept <= layer
