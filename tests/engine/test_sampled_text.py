"""Where rows of sampled text stand, how long they are, and that they are the model's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from awqkit.checkpoint import DecoderConfig
from awqkit_runtime.engine import sampled_text
from awqkit_runtime.engine.sampled_text import row_starts, row_tokens, sample_text
from awqkit_runtime.models.loader import load_decoder
from tests.engine.recorded_graphs import RecordedGraphs
from tests.engine.tensor_attention import TensorAttention
from tests.tiny_models import write_tiny_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LARGE = DecoderConfig(
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    vocab_size=92544,
    max_position_embeddings=32768,
    norm_eps=1e-5,
)
SMALL = replace(LARGE, hidden_size=256, num_layers=8, intermediate_size=768, vocab_size=4096)


@pytest.mark.parametrize(
    ("tokens", "session_len"), [(64, 64), (64, 100), (64, 2048), (16, 32768), (64, 1_000_000)]
)
def test_rows_reach_from_the_first_position_to_the_last(tokens: int, session_len: int) -> None:
    starts = row_starts(tokens, session_len).tolist()
    assert starts == sorted(starts)
    assert starts[0] == 0 and starts[-1] == session_len - tokens


def test_starts_are_even_in_their_logarithm() -> None:
    starts = row_starts(64, 65_600)[1:].double()
    steps = starts[1:] / starts[:-1]
    assert starts[0] == 64 and starts[-1] == 65_536
    assert bool((steps - 1024 ** (1 / 14)).abs().max() < 0.03)


def test_a_large_model_reads_little_on_a_cpu() -> None:
    assert row_tokens(SMALL, CPU, 2048) == 64
    assert row_tokens(LARGE, CPU, 2048) == 16
    assert row_tokens(LARGE, GPU, 2048) == 64
    assert row_tokens(SMALL, CPU, 20) == 20


def test_the_text_is_the_models_and_the_same_every_time(tmp_path: Path) -> None:
    decoder = load_decoder(write_tiny_model(tmp_path, seed=2), device="cpu")
    text, again = sample_text(decoder), sample_text(decoder)
    assert torch.equal(text.ids, again.ids)
    assert text.ids.shape == (16, 64) and bool((text.ids[:, 0] == 1).all())
    assert len({tuple(row) for row in text.ids.tolist()}) == 16
    assert int(text.positions.max()) == decoder.session_len - 1


def test_the_text_is_the_same_where_steps_are_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = load_decoder(write_tiny_model(tmp_path, seed=2), device="cpu")
    expected = sample_text(decoder)
    graphs = RecordedGraphs()
    monkeypatch.setattr(sampled_text, "makes_graphs", lambda *arguments: True)
    monkeypatch.setattr(sampled_text, "prepare_decode", lambda *arguments: None)
    monkeypatch.setattr(sampled_text, "CudaGraphs", lambda *arguments, **settings: graphs)
    monkeypatch.setattr(sampled_text, "DecodeAttention", TensorAttention)
    assert torch.equal(sample_text(decoder).ids, expected.ids)
    assert (graphs.captures, graphs.replays) == (1, 62)


def test_without_graphs_there_is_the_same_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = load_decoder(write_tiny_model(tmp_path, seed=2), device="cpu")
    expected = sample_text(decoder)

    def refuse(*arguments: object, **settings: object) -> None:
        raise RuntimeError("no memory for a graph")

    monkeypatch.setattr(sampled_text, "makes_graphs", lambda *arguments: True)
    monkeypatch.setattr(sampled_text, "prepare_decode", lambda *arguments: None)
    monkeypatch.setattr(sampled_text, "CudaGraphs", refuse)
    monkeypatch.setattr(sampled_text, "DecodeAttention", TensorAttention)
    assert torch.equal(sample_text(decoder).ids, expected.ids)


@pytest.mark.gpu
def test_graphs_read_what_single_steps_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_model(tmp_path, "llama", head_dim=64)
    decoder = load_decoder(folder, device="cuda", dtype="bfloat16")
    starts = row_starts(64, decoder.session_len).cuda()
    graphed = sampled_text._reading_rows(decoder, starts, 64)
    assert isinstance(graphed, sampled_text._GraphedRows)
    monkeypatch.setattr(sampled_text, "makes_graphs", lambda *arguments: False)
    single = sampled_text._reading_rows(decoder, starts, 64)
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        for done in range(63):
            tokens = torch.randint(3, 300, (16,), generator=generator).cuda()
            expected = single(tokens, done)
            assert (graphed(tokens, done) - expected).norm() <= 0.02 * expected.norm()
    assert graphed._repeat != graphed._write_hidden
