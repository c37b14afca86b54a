"""Scores through the pages equal those of the whole text at once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from awqkit_runtime import load, text_scores
from awqkit_runtime.errors import NumericsError
from awqkit_runtime.models.loader import load_decoder
from awqkit_runtime.text_scores import PagedReader, TextScore, score_text
from tests.tiny_models import write_tiny_model

SEQLEN = 100


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return (
        write_tiny_model(root / "a", seed=1),
        write_tiny_model(root / "b", seed=2),
    )


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(320, (251,), generator=torch.Generator().manual_seed(3))


def reader(folder: Path, quant_policy: int | str = 0) -> PagedReader:
    return PagedReader(load_decoder(folder), quant_policy=quant_policy, seqlen=SEQLEN)


def score(
    folder: Path, ids: Tensor, policy: int | str = 0, against: Path | None = None
) -> TextScore:
    reference = None if against is None else reader(against)
    return score_text(reader(folder, policy), ids, seqlen=SEQLEN, reference=reference)


def direct(folder: Path, chunk: Tensor) -> Tensor:
    """Log-probabilities of the predicted positions, float64 [T - 1, vocab]."""
    logits = load(folder)(chunk.unsqueeze(0))[0, :-1]
    return logits.double().log_softmax(dim=-1)


def test_loss_and_divergence_equal_a_direct_computation(
    folders: tuple[Path, Path], ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_scores, "PREFILL_TOKENS", 33)
    monkeypatch.setattr(text_scores, "_LOGIT_BYTES", 4 * 320 * 7)
    loss = divergence = reference_loss = 0.0
    for chunk in ids.split(SEQLEN):
        ours, theirs = (direct(folder, chunk) for folder in folders)
        loss -= float(ours.gather(1, chunk[1:].unsqueeze(1)).sum())
        divergence += float((theirs.exp() * (theirs - ours)).sum())
        reference_loss -= float(theirs.gather(1, chunk[1:].unsqueeze(1)).sum())
    found = score(folders[0], ids, against=folders[1])
    assert found.predicted == 251 - 3
    assert found.negative_log_likelihood == pytest.approx(loss, rel=1e-5)
    assert found.divergence == pytest.approx(divergence, rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(loss / 248), rel=1e-4)
    assert found.reference_perplexity == pytest.approx(math.exp(reference_loss / 248), rel=1e-4)


def test_a_model_is_no_distance_from_itself_until_its_cache_is_quantized(
    folders: tuple[Path, Path], ids: Tensor
) -> None:
    folder = folders[0]
    distances = [score(folder, ids, policy, against=folder).kl for policy in (0, 8, "k8v4", 4)]
    assert distances[0] == 0
    assert all(kl is not None for kl in distances)
    assert 0 < distances[1] < distances[2] < distances[3]  # type: ignore[operator]


def test_without_a_reference_there_is_no_divergence(
    folders: tuple[Path, Path], ids: Tensor
) -> None:
    found = score(folders[0], ids[:50])
    assert found.kl is None and found.predicted == 49


def test_a_last_chunk_of_one_token_predicts_nothing(
    folders: tuple[Path, Path], ids: Tensor
) -> None:
    seen: list[int] = []
    found = score_text(reader(folders[0]), ids[: SEQLEN + 1], seqlen=SEQLEN, on_chunk=seen.append)
    assert found.predicted == SEQLEN - 1 and seen == [SEQLEN, 1]
    shorter = score(folders[0], ids[:SEQLEN])
    assert found.negative_log_likelihood == shorter.negative_log_likelihood


def test_logits_that_are_not_finite_are_refused(folders: tuple[Path, Path], ids: Tensor) -> None:
    broken = reader(folders[0])
    broken.decoder.norm.weight.fill_(float("inf"))
    with pytest.raises(NumericsError, match="not finite"):
        score_text(broken, ids, seqlen=SEQLEN)
