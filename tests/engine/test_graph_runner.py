"""Decode steps as graphs against the plain Runner, on a CPU with recorded operations as graphs."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine.graph_runner import GraphRunner
from awqkit_runtime.engine.graph_sizes import graph_sizes
from awqkit_runtime.engine.launched_step import LaunchedStep
from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.runner import Runner
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.engine.scheduler import Chunk
from awqkit_runtime.models.loader import load_decoder
from tests.engine.fakes import random_frame
from tests.engine.recorded_graphs import RecordedGraphs
from tests.engine.tensor_attention import TensorAttention
from tests.tiny_models import write_tiny_model

ROWS = 7
SESSION = 512
#: Prompt lengths: within a page, at its end, over several pages.
PROMPTS = (5, 63, 64, 130, 20)


def page_pool(decoder: Any, policy: int | str, frame: KeyFrame = PLAIN_FRAME) -> PagePool:
    page_format = PageFormat.for_policy(decoder.config, policy, decoder.dtype)
    pages = len(PROMPTS) * pages_for(200)
    return PagePool(page_format, pages + 1, decoder.device, key_frame=frame)


def graph_runner(decoder: Any, pool: PagePool) -> GraphRunner:
    return GraphRunner(decoder, pool, RecordedGraphs(), max_rows=ROWS)


def requests(vocab: int) -> list[Request]:
    """Pages of one sequence lie apart; one of them draws its tokens."""
    rng = random.Random(3)
    free = list(range(len(PROMPTS) * pages_for(200)))
    rng.shuffle(free)
    found = []
    for number, length in enumerate(PROMPTS):
        one = Request(
            request_id=number,
            prompt_token_ids=tuple(rng.randrange(vocab) for _ in range(length)),
            params=SamplingParams(temperature=float(number == 1), top_k=40),
            seed=number,
            stop_token_ids=frozenset(),
            max_output=100,
        )
        one.pages = [free.pop() for _ in range(pages_for(length + 1))]
        one.leader = None
        found.append(one)
    return found


@torch.inference_mode()
def spoil(runner: GraphRunner, step: LaunchedStep) -> None:
    """Whatever the step behind this one must bring anew is other than it was."""
    inputs = runner._inputs
    inputs._numbers[: inputs._chosen_at].fill_(311)
    if inputs._held is not step:
        inputs.outcome.fill_(317)
    if runner._hidden is not None:
        runner._hidden.fill_(float("nan"))


def grow(one: Request, spare: list[int]) -> None:
    while len(one.pages) < pages_for(one.num_tokens + 2):
        one.pages.append(spare.pop())


def serve(runner: Any, vocab: int, steps: int) -> list[list[int]]:
    """Answers of requests that come and go: every third step has others, in another order."""
    batch = requests(vocab)
    rng = random.Random(8)
    taken = {page for one in batch for page in one.pages}
    spare = [p for p in range(len(PROMPTS) * pages_for(200)) if p not in taken]
    prompts = [Chunk(request=one, start=0, length=one.num_tokens, samples=True) for one in batch]
    deliver(runner.launch(prompts, None))
    for number in range(steps):
        if number % 3 == 0:
            # With the one that draws and without it.
            candidates = [batch[0], *batch[2:]] if number % 2 else batch
            running = rng.sample(candidates, (5, 4, 3, 2)[number // 3])
        for one in running:
            grow(one, spare)
        flying = runner.launch([decode(one, 0) for one in running], None)
        if isinstance(runner, GraphRunner):
            tokens = flying.token_ids.clone()
            spoil(runner, flying)
            assert torch.equal(tokens, flying.token_ids)
        behind = runner.launch([decode(one, 1) for one in running[::-1]], flying)
        deliver(flying)
        deliver(behind)
    return [one.output_token_ids for one in batch]


def decode(one: Request, ahead: int) -> Chunk:
    start = one.num_tokens - 1 + ahead
    return Chunk(request=one, start=start, length=1, samples=True, follows=ahead > 0)


def deliver(step: LaunchedStep) -> None:
    for one, token in zip(step.requests, step.collect(), strict=True):
        one.output_token_ids.append(token.token_id)


@pytest.fixture(autouse=True)
def _attention_of_operations_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awqkit_runtime.engine.graph_runner.DecodeAttention", TensorAttention)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_tiny_model(tmp_path_factory.mktemp("llama"), "llama", seed=3)
    return load_decoder(folder, device="cpu", dtype="float32", session_len=SESSION)


@pytest.mark.parametrize("policy", [0, 8, 4, "k8v4"])
def test_graphs_give_the_tokens_of_the_plain_runner(decoder: Any, policy: int | str) -> None:
    vocab = decoder.config.vocab_size
    runner = graph_runner(decoder, page_pool(decoder, policy))
    plain = Runner(decoder, page_pool(decoder, policy))
    assert serve(runner, vocab, 12) == serve(plain, vocab, 12)
    graphs = runner._graphs
    assert isinstance(graphs, RecordedGraphs)
    # One for each size that came, made once.
    assert graphs.captures == len(runner._steps) + len(runner._greedy_steps)
    assert len(runner._steps) >= 2 and len(runner._greedy_steps) >= 2
    assert graphs.replays == 24 - graphs.captures


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "phi3", "gemma2", "gemma3"])
def test_so_they_do_in_other_families(tmp_path: Path, family: str) -> None:
    """Biases, norms of heads, windows shorter than the prompts, caps."""
    decoder = load_decoder(
        write_tiny_model(tmp_path, family, seed=4), device="cpu", session_len=SESSION
    )
    vocab = decoder.config.vocab_size
    tokens = serve(graph_runner(decoder, page_pool(decoder, 8)), vocab, 6)
    assert tokens == serve(Runner(decoder, page_pool(decoder, 8)), vocab, 6)


def test_so_they_do_over_keys_in_another_frame(decoder: Any) -> None:
    vocab, frame = decoder.config.vocab_size, random_frame(decoder.config)
    tokens = serve(graph_runner(decoder, page_pool(decoder, 4, frame)), vocab, 6)
    assert tokens == serve(Runner(decoder, page_pool(decoder, 4, frame)), vocab, 6)


def test_the_tensors_of_a_graph_stay_where_they_are(decoder: Any) -> None:
    runner = graph_runner(decoder, page_pool(decoder, 0))
    inputs = runner._inputs

    def addresses() -> list[int]:
        found = (inputs._numbers, inputs.outcome, inputs._page_table, runner._hidden)
        return [tensor.data_ptr() for tensor in found if tensor is not None]

    serve(runner, decoder.config.vocab_size, 3)
    before = addresses()
    assert len(before) == 4
    serve(runner, decoder.config.vocab_size, 3)
    assert addresses() == before


def test_pages_are_copied_only_where_they_changed(
    decoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from awqkit_runtime.engine import decode_inputs

    runner, copied = graph_runner(decoder, page_pool(decoder, 0)), []
    to_device = decode_inputs.to_device

    def noted(arrays: list[Any], device: torch.device) -> Any:
        copied.append(arrays[0].tolist())
        return to_device(arrays, device)

    batch = requests(decoder.config.vocab_size)[:3]
    for one in batch:
        prompt = Chunk(request=one, start=0, length=one.num_tokens, samples=True)
        deliver(runner.launch([prompt], None))
        one.pages.append(17 + one.request_id)
    monkeypatch.setattr(decode_inputs, "to_device", noted)
    for _ in range(3):
        deliver(runner.launch([decode(one, 0) for one in batch], None))
    assert copied == [[0, 1, 2]]
    batch[1].pages[-1] = 16  # As when a page turns out to be one that is there already.
    deliver(runner.launch([decode(one, 0) for one in batch], None))
    deliver(runner.launch([decode(one, 0) for one in batch[1:]], None))
    assert copied[1:] == [[1], [0, 1]]


def test_pages_are_copied_again_where_the_copy_was_interrupted(
    decoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = graph_runner(decoder, page_pool(decoder, 0))
    one, other = requests(decoder.config.vocab_size)[:2]
    for prompt in (one, other):
        chunk = Chunk(request=prompt, start=0, length=prompt.num_tokens, samples=True)
        deliver(runner.launch([chunk], None))
        prompt.pages.append(18 - prompt.request_id)
    deliver(runner.launch([decode(one, 0)], None))

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("awqkit_runtime.engine.decode_inputs.to_device", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.launch([decode(other, 0)], None)
    for prompt in (one, other):
        deliver(runner.launch([decode(prompt, 0)], None))
        assert runner._inputs.page_table(1)[0, : len(prompt.pages)].tolist() == prompt.pages


def test_other_steps_run_as_in_any_runner(decoder: Any) -> None:
    runner = graph_runner(decoder, page_pool(decoder, 0))
    one, other = requests(decoder.config.vocab_size)[:2]
    mixed = [Chunk(request=one, start=0, length=5, samples=True), decode(other, 0)]
    deliver(runner.launch(mixed, None))
    deliver(runner.launch([Chunk(request=other, start=3, length=1, samples=False)], None))
    assert not runner._steps and not runner._greedy_steps


class FullDevice(RecordedGraphs):
    def capture(self, compute: Callable[[], object]) -> Callable[[], None]:
        self.captures += 1
        raise torch.OutOfMemoryError("no memory for a graph")


def test_steps_go_on_where_no_graph_can_be_made(decoder: Any) -> None:
    """With the same tokens, and without trying again at every step."""
    vocab, graphs = decoder.config.vocab_size, FullDevice()
    runner = GraphRunner(decoder, page_pool(decoder, 0), graphs, max_rows=ROWS)
    with pytest.warns(UserWarning, match="without a CUDA graph.*no memory for a graph"):
        found = serve(runner, vocab, 6)
    assert found == serve(Runner(decoder, page_pool(decoder, 0)), vocab, 6)
    assert 0 < graphs.captures == len(runner._steps) + len(runner._greedy_steps) < 12


@pytest.mark.filterwarnings("ignore:Steps of .* without a CUDA graph")
@pytest.mark.parametrize("new_graphs", [RecordedGraphs, FullDevice])
def test_a_runner_that_nobody_uses_gives_its_memory_back_at_once(
    decoder: Any, new_graphs: type[RecordedGraphs]
) -> None:
    """Without a search for cycles, which may come late."""
    runner = GraphRunner(decoder, page_pool(decoder, 0), new_graphs(), max_rows=ROWS)
    serve(runner, decoder.config.vocab_size, 3)
    left = weakref.ref(runner)
    gc.disable()
    del runner
    try:
        assert left() is None
    finally:
        gc.enable()


def test_sizes_reach_the_largest_batch() -> None:
    assert graph_sizes(1) == (1,)
    assert graph_sizes(7) == (1, 2, 4, 7)
    assert graph_sizes(128)[-3:] == (112, 120, 128)
    assert graph_sizes(256)[-3:] == (224, 240, 256)
    for most in range(1, 300):
        sizes = graph_sizes(most)
        assert list(sizes) == sorted(set(sizes)) and sizes[-1] == most
