from pathlib import Path

import torch

from awqkit.checkpoint import open_checkpoint
from awqkit.tuning import divergence as module
from awqkit.tuning.divergence import Readout, divergence, divergence_gradient
from tests.tiny_models import write_tiny_model


def readout_of(folder: Path, family: str = "llama") -> Readout:
    checkpoint = open_checkpoint(write_tiny_model(folder, family))
    config = checkpoint.config
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return Readout(
        config=config, norm=checkpoint.tensor("model.norm.weight"), head=checkpoint.tensor(head)
    )


def test_is_the_mean_kl_of_the_next_tokens(tmp_path: Path, monkeypatch) -> None:
    readout = readout_of(tmp_path / "model")
    torch.manual_seed(0)
    hidden, original = torch.randn(2, 3, 7, 128)
    ours, theirs = (readout.log_probabilities(x.flatten(0, 1)).double() for x in (hidden, original))
    expected = torch.nn.functional.kl_div(ours, theirs, log_target=True, reduction="sum") / 21
    monkeypatch.setattr(module, "LOGIT_ELEMENTS", 320 * 4)
    assert abs(divergence(readout, hidden, original) - float(expected)) < 1e-5 * float(expected)
    assert abs(divergence(readout, original, original)) < 1e-6


def test_the_gradient_is_that_of_finite_differences(tmp_path: Path, monkeypatch) -> None:
    readout = readout_of(tmp_path / "model", "gemma2")
    torch.manual_seed(1)
    hidden, original, along = torch.randn(3, 2, 5, 128)
    monkeypatch.setattr(module, "LOGIT_ELEMENTS", 320 * 3)
    gradient = divergence_gradient(readout, hidden, original)
    step = 1e-2
    ahead, behind = (divergence(readout, hidden + s * along, original) for s in (step, -step))
    slope = (ahead - behind) / (2 * step)
    assert abs(float((gradient * along).sum()) - slope) < 0.02 * abs(slope) + 1e-5
