"""Tiles as a graph against tiles in torch, on a CPU with recorded operations as the graph."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine import steady_kernel_runner
from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.engine.scheduler import Chunk
from awqkit_runtime.engine.steady_kernel_runner import SteadyKernelRunner
from awqkit_runtime.engine.steady_runner import SteadyRunner
from awqkit_runtime.models.loader import load_decoder
from tests.engine.recorded_graphs import RecordedGraphs
from tests.engine.tensor_attention import TensorAttention
from tests.tiny_models import write_tiny_model

LENGTHS = (3, 70, 33, 64)
PAGES = sum(map(pages_for, LENGTHS))


class NoGraphs:
    def capture(self, compute: Any) -> Any:
        raise RuntimeError("none here")


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(steady_kernel_runner, "DecodeAttention", TensorAttention)
    folder = write_tiny_model(tmp_path, "gemma2", seed=3)
    return load_decoder(folder, device="cpu", dtype="float32", session_len=128)


def pool_of(decoder: Any) -> PagePool:
    """With a page more, for idle rows."""
    form = PageFormat.for_policy(decoder.config, 8, decoder.dtype)
    return PagePool(form, PAGES + 1, decoder.device)


def requests(vocab: int) -> list[Request]:
    rng = random.Random(1)
    free = rng.sample(range(PAGES), PAGES)
    found = []
    for number, length in enumerate(LENGTHS):
        one = Request(
            request_id=number,
            prompt_token_ids=tuple(rng.randrange(vocab) for _ in range(length)),
            params=SamplingParams(),
            seed=number,
            stop_token_ids=frozenset(),
            max_output=1,
        )
        one.pages = [free.pop() for _ in range(pages_for(length))]
        found.append(one)
    return found


def steps(batch: list[Request]) -> list[list[Chunk]]:
    """All prompts to their ends, in pieces of other sizes, some beside each other in a tile."""
    rng, done = random.Random(2), dict.fromkeys(range(len(batch)), 0)
    found = []
    while any(done[number] < LENGTHS[number] for number in done):
        chunks = []
        for number, one in enumerate(batch):
            length = min(rng.choice((0, 1, 7, 20)), LENGTHS[number] - done[number])
            if length:
                end = done[number] + length
                chunks.append(
                    Chunk(
                        request=one,
                        start=done[number],
                        length=length,
                        samples=end == LENGTHS[number],
                    )
                )
                done[number] = end
        if chunks:
            found.append(chunks)
    return found


def logits(runner: SteadyRunner, vocab: int) -> torch.Tensor:
    return torch.cat([runner.run(chunks) for chunks in steps(requests(vocab))])


def test_a_graph_computes_what_tiles_in_torch_do(decoder: Any) -> None:
    vocab, graphs = decoder.config.vocab_size, RecordedGraphs()
    found = logits(SteadyKernelRunner(decoder, pool_of(decoder), graphs), vocab)
    expected = logits(SteadyRunner(decoder, pool_of(decoder)), vocab)
    assert len(found) == len(LENGTHS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert graphs.captures == 1
    assert graphs.replays > 10


def test_the_first_tile_is_computed_as_the_others_are(decoder: Any) -> None:
    """By the graph: what ran before it was captured may have been other kernels."""
    graphs = RecordedGraphs()
    runner = SteadyKernelRunner(decoder, pool_of(decoder), graphs)
    one = requests(decoder.config.vocab_size)[0]
    runner.run([Chunk(request=one, start=0, length=3, samples=True)])
    assert graphs.replays == 1


@pytest.mark.parametrize("graphs", [None, NoGraphs()])
@pytest.mark.filterwarnings("ignore:Deterministic steps run without a CUDA graph")
def test_goes_without_a_graph(decoder: Any, graphs: Any) -> None:
    vocab = decoder.config.vocab_size
    found = logits(SteadyKernelRunner(decoder, pool_of(decoder), graphs), vocab)
    expected = logits(SteadyRunner(decoder, pool_of(decoder)), vocab)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
