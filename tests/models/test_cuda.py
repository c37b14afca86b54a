"""The same models on a CUDA device, through plain torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from awqkit_runtime.models.loader import load, load_decoder
from tests.models.paged_generation import generate_greedily
from tests.models.test_decoder import CONFIG, build, logits, random_weights
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.gpu
PROMPT = torch.randint(3, 320, (150,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(params=["llama", "mistral", "qwen3"])
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
    assert (half - expected).abs().max() <= 0.1 * expected.abs().max()


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
