"""The demo model, whose one matrix is embedding and head, with that matrix quantized as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from awqkit.checkpoint import QuantizedWeight, open_checkpoint, write_checkpoint
from awqkit.checkpoint.canonical import EMBEDDING
from awqkit.checkpoint.tokenizer import load_tokenizer
from awqkit.vocabulary import rounded_matrix
from awqkit_runtime.models.loader import load, load_decoder
from tests.checkpoint.folders import write_dequantized
from tests.models.paged_generation import generate_greedily

DEMO = Path(__file__).parents[2] / "examples" / "demo_model"
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:There is no kernel yet.*a head in 8 bits")


def packed_demo(out: Path, embedding_bits: int | None) -> Path:
    """The linears rounded to nearest in 4 bits, the matrix in so many; None leaves it as it is."""
    source = open_checkpoint(DEMO / "model")

    def weight(name: str) -> torch.Tensor | QuantizedWeight:
        bits = embedding_bits if name == EMBEDDING else 4 if "_proj.weight" in name else None
        tensor = source.tensor(name)
        return tensor if bits is None else rounded_matrix(tensor, bits, CPU)

    weights = ((name, weight(name)) for name in source.names())
    write_checkpoint(out, weights, source=source, format="compressed-tensors")
    return out


@pytest.fixture(scope="module")
def text_ids() -> list[int]:
    text = (DEMO / "evaluation.txt").read_text()[:4000]
    ids: list[int] = load_tokenizer(DEMO / "model").encode(text)
    return ids[:400]


@pytest.mark.parametrize(("bits", "most_kl"), [(8, 1e-3), (4, 0.05)])
def test_it_stays_near_the_model_with_a_dense_matrix(
    tmp_path: Path, text_ids: list[int], bits: int, most_kl: float
) -> None:
    ids = torch.tensor([text_ids])
    dense, packed = (
        torch.log_softmax(load(packed_demo(tmp_path / str(b), b), dtype="float32")(ids), dim=-1)
        for b in (None, bits)
    )
    kl = (dense.exp() * (dense - packed)).sum(-1).mean()
    assert 0 < float(kl) < most_kl


@pytest.mark.parametrize("bits", [8, 4])
def test_it_answers_as_the_same_weights_in_floats(
    tmp_path: Path, text_ids: list[int], bits: int
) -> None:
    packed = packed_demo(tmp_path / "packed", bits)
    plain = write_dequantized(packed, tmp_path / "plain")
    answers = [
        generate_greedily(
            load_decoder(folder, device="cpu", dtype="float32"), text_ids[:60], 24, quant_policy=0
        )
        for folder in (packed, plain)
    ]
    assert answers[0] == answers[1]
