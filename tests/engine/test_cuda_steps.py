"""Steps on a GPU: graphs against kernels launched one by one, nothing that waits, equal answers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from awqkit.checkpoint import open_checkpoint, write_checkpoint
from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.graph_runner import GraphRunner
from awqkit_runtime.engine.launched_step import LaunchedStep
from awqkit_runtime.engine.request import Completion, Request
from awqkit_runtime.engine.runner import Runner
from awqkit_runtime.engine.runners import runner_for
from awqkit_runtime.engine.sampler import sample
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.engine.scheduler import Chunk
from awqkit_runtime.engine.steady_kernel_runner import SteadyKernelRunner
from awqkit_runtime.engine.steady_runner import SteadyRunner
from awqkit_runtime.engine.token_choice import _last_of
from awqkit_runtime.kernels.greedy import greedy_
from awqkit_runtime.kernels.top_p import top_p_cutoffs
from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.models.loader import load_decoder
from tests.checkpoint.folders import quantized_weights, write_quantized_ends
from tests.engine.fakes import generate, generate_alone, make_engine
from tests.engine.test_sampler import request as sampling_request
from tests.engine.tokenizers_for_tests import shared_folder
from tests.tiny_models import write_tiny_model

pytestmark = [
    pytest.mark.gpu,
    # Else steps would go on without one.
    pytest.mark.filterwarnings("error:Steps of .* without a CUDA graph"),
]
ROOT = Path(__file__).parents[2]
#: Tokens that a sequence of these tests gets at most.
TOKENS = 220
ROWS = 12


def int4_decoder(folder: Path, family: str, head_dim: int, vocab_size: int = 1000) -> Decoder:
    source = open_checkpoint(
        write_tiny_model(
            folder / "plain",
            family,
            hidden_size=4 * head_dim,
            intermediate_size=512,
            head_dim=head_dim,
            vocab_size=vocab_size,
        )
    )
    write_checkpoint(
        folder / "int4", quantized_weights(source), source=source, format="compressed-tensors"
    )
    return load_decoder(folder / "int4", device="cuda", dtype="bfloat16")


def new_pool(decoder: Decoder, policy: int | str) -> PagePool:
    page_format = PageFormat.for_policy(decoder.config, policy, decoder.dtype)
    return PagePool(page_format, ROWS * pages_for(TOKENS), decoder.device)


def graph_runner(decoder: Decoder, policy: int | str) -> GraphRunner:
    config = EngineConfig(max_batch_size=ROWS, quant_policy=policy)
    runner = runner_for(decoder, new_pool(decoder, policy), config)
    assert isinstance(runner, GraphRunner)
    return runner


def requests(count: int, **params: Any) -> list[Request]:
    rng, size = random.Random(0), pages_for(TOKENS)
    pages = list(range(ROWS * size))
    rng.shuffle(pages)
    found = []
    for number in range(count):
        one = Request(
            request_id=number,
            prompt_token_ids=tuple(rng.randrange(1000) for _ in range(10 + 13 * number)),
            params=SamplingParams(**params),
            seed=number,
            stop_token_ids=frozenset(),
            max_output=100,
        )
        one.pages = pages[number * size : (number + 1) * size]
        found.append(one)
    return found


def prompts(batch: list[Request]) -> list[Chunk]:
    return [Chunk(request=one, start=0, length=one.num_tokens, samples=True) for one in batch]


def decodes(batch: list[Request], *, ahead: int = 0) -> list[Chunk]:
    return [
        Chunk(
            request=one,
            start=one.num_tokens - 1 + ahead,
            length=1,
            samples=True,
            follows=ahead > 0,
        )
        for one in batch
    ]


def deliver(step: LaunchedStep) -> list[int]:
    tokens = [token.token_id for token in step.collect()]
    for one, token in zip(step.requests, tokens, strict=True):
        one.output_token_ids.append(token)
    return tokens


@contextmanager
def noted_logits(decoder: Decoder) -> Iterator[list[Tensor]]:
    """Copies of what the decoder's head gives meanwhile."""
    found: list[Tensor] = []
    logits = decoder.logits

    def noted(hidden: Tensor) -> Tensor:
        found.append(logits(hidden))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "logits", noted)
        yield found


#: All policies for one family; of the others what makes them different.
CASES = [
    *(("internlm2", 128, policy) for policy in (0, 8, 4, "k8v4")),
    *(("qwen2", 64, 0), ("qwen3", 128, 8), ("gemma2", 128, 8), ("gemma3", 64, 4)),
]


@pytest.mark.parametrize(("family", "head_dim", "policy"), CASES)
def test_graphs_compute_what_single_launches_do(
    tmp_path: Path, family: str, head_dim: int, policy: int | str
) -> None:
    assert_graphs_compute_the_same(int4_decoder(tmp_path, family, head_dim), policy)


@pytest.mark.filterwarnings("ignore:There is no kernel yet.*a head in 8 bits")
@pytest.mark.parametrize(("bits", "tied"), [(4, True), (8, True), (4, False), (8, False)])
def test_graphs_look_tokens_up_in_quantized_ends(tmp_path: Path, bits: int, tied: bool) -> None:
    folder = write_quantized_ends(
        tmp_path,
        embedding_bits=bits,
        head_bits=12 - bits,
        tied=tied,
        hidden_size=256,
        head_dim=64,
        vocab_size=1000,
    )
    assert_graphs_compute_the_same(load_decoder(folder, device="cuda", dtype="bfloat16"), 8)


def assert_graphs_compute_the_same(decoder: Decoder, policy: int | str) -> None:
    """Batches of several sizes, idle rows among them; both runners go on from the same tokens."""
    graphs, plain = graph_runner(decoder, policy), Runner(decoder, new_pool(decoder, policy))
    batch = requests(ROWS, logprobs=1)  # Whose logits are computed behind the graph …
    greedy = requests(ROWS)  # … and in it.
    graphs.launch(prompts(batch), None)
    deliver(plain.launch(prompts(batch), None))
    for count in (ROWS, ROWS, 1, 3, 1, 3, 7, ROWS, 7):
        running = batch[:count]
        for one, same in zip(greedy, batch, strict=True):
            one.output_token_ids = list(same.output_token_ids)
        with noted_logits(decoder) as found:
            graphs.launch(decodes(running), None).collect()
            graphs.launch(decodes(running), None).collect()  # The first time may be no graph.
            deliver(plain.launch(decodes(running), None))
        first, replayed, expected = found
        assert torch.equal(first, replayed)
        assert (replayed - expected).norm() <= 0.05 * expected.norm()
        for _ in range(2):
            chosen = graphs.launch(decodes(greedy[:count]), None).token_ids
            lost = replayed.amax(-1) - replayed.gather(1, chosen.unsqueeze(1)).squeeze(1)
            assert float(lost.max()) <= 0.02 * float(replayed.abs().max())


@pytest.mark.parametrize("params", [{}, {"temperature": 0.8, "top_k": 50}])
def test_steps_follow_each_other_without_the_host(tmp_path: Path, params: dict[str, Any]) -> None:
    decoder = int4_decoder(tmp_path, "internlm2", 128)
    answers = []
    for ahead in (False, True):
        runner, batch = graph_runner(decoder, 8), requests(5, **params)
        flying = runner.launch(prompts(batch), None)
        for _ in range(20):
            if not ahead:
                deliver(flying)
                flying = runner.launch(decodes(batch), None)
                continue
            behind = runner.launch(decodes(batch, ahead=1), flying)
            deliver(flying)
            flying = behind
        deliver(flying)
        assert bool(runner._greedy_steps) == (not params)
        answers.append([one.output_token_ids for one in batch])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("policy", [0, 8])
def test_launching_prompts_waits_for_nothing(tmp_path: Path, policy: int) -> None:
    """Beside decodes, and behind tokens that the cache holds."""
    decoder = int4_decoder(tmp_path, "internlm2", 128)
    runner, batch = graph_runner(decoder, policy), requests(5)
    deliver(runner.launch(prompts(batch[:3]), None))
    mixed = [*decodes(batch[:3]), *prompts(batch[3:])]
    later = [Chunk(request=batch[4], start=30, length=20, samples=False), *decodes(batch[:1])]
    for chunks in (mixed, later):
        runner.launch(chunks, None).collect()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for chunks in (mixed, later):
            runner.launch(chunks, None)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.8},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
        {"logprobs": 3},
    ],
)
def test_launching_a_decode_step_waits_for_nothing(tmp_path: Path, params: dict[str, Any]) -> None:
    decoder = int4_decoder(tmp_path, "internlm2", 128)
    runner, batch = graph_runner(decoder, 8), requests(5, **params)
    deliver(runner.launch(prompts(batch), None))
    for _ in range(2):  # Makes the graph, and loads what sampling takes.
        deliver(runner.launch(decodes(batch), None))
    torch.cuda.set_sync_debug_mode("error")
    try:
        step = runner.launch(decodes(batch), None)
        behind = runner.launch(decodes(batch, ahead=1), step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(deliver(step)) == len(deliver(behind)) == 5


@pytest.mark.parametrize("logprobs", [None, 3])
def test_collecting_a_step_does_not_wait_for_the_one_behind(
    tmp_path: Path, logprobs: int | None
) -> None:
    decoder = int4_decoder(tmp_path, "internlm2", 128)
    runner, batch = graph_runner(decoder, 8), requests(5, logprobs=logprobs)
    deliver(runner.launch(prompts(batch), None))
    for _ in range(2):
        deliver(runner.launch(decodes(batch), None))
    step, behind = runner.launch(decodes(batch), None), torch.cuda.Event()
    torch.cuda._sleep(4 * 10**9)  # Cycles: two seconds and more.
    behind.record()
    tokens = step.collect()
    assert not behind.query()
    assert all((token.logprobs is None) == (logprobs is None) for token in tokens)
    torch.cuda.synchronize()


@pytest.mark.parametrize("vocab", [8, 1000, 1001, 92544])
def test_the_likeliest_token_is_the_first_of_equal_ones(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = (3 * torch.randn(9, vocab, generator=generator)).bfloat16()
    logits[1] = logits[1].round()
    logits[2] = -logits[2].abs().round()  # Of both zeros.
    logits[3] = -5.0
    for row, value in ((4, torch.nan), (5, torch.inf), (6, -torch.inf)):
        logits[row, vocab // 2] = value
    found = torch.full((9, 2), -7, device="cuda")
    greedy_(logits.cuda(), found)
    tokens, finite = found.T.tolist()
    expected = logits.float().argmax(dim=-1).tolist()
    sound = [row for row in range(9) if row != 4]
    assert [tokens[row] for row in sound] == [expected[row] for row in sound]
    assert 0 <= tokens[4] < vocab
    assert finite == [1, 1, 1, 1, 0, 0, 0, 1, 1]


def test_sampling_gives_the_tokens_of_the_cpu() -> None:
    rng = random.Random(0)
    logits = 4 * torch.randn(200, 5000, generator=torch.Generator().manual_seed(0))
    batch = [
        sampling_request(
            seed=number,
            temperature=rng.choice((0.0, 0.7, 1.3)),
            top_k=rng.choice((0, 0, 40)),
            top_p=rng.choice((1.0, 0.9)),
            min_p=rng.choice((0.0, 0.05)),
            logprobs=rng.choice((None, 2)),
        )
        for number in range(200)
    ]
    on_cpu, on_gpu = (
        [token.token_id for token in sample(on_device, batch)]
        for on_device in (logits, logits.cuda())
    )
    # Where a random number lies within a rounding of two tokens' border, either may come.
    assert sum(a != b for a, b in zip(on_cpu, on_gpu, strict=True)) <= 2


@pytest.mark.parametrize(("vocab", "spread"), [(50, 3.0), (92544, 3.0), (92544, 0.1), (4097, 30)])
def test_top_p_keeps_what_it_keeps_in_order(vocab: int, spread: float) -> None:
    """The kernel against the sorted way, with ties and tokens that are ruled out."""
    generator = torch.Generator().manual_seed(1)
    logits = spread * torch.randn(9, vocab, generator=generator)
    logits[3] = logits[3].round()
    logits[4, ::3] = -torch.inf
    logits[5] = 0.0
    scaled = (logits - logits.amax(dim=-1, keepdim=True)).cuda()
    rows = torch.tensor([8, 3, 4, 5, 0, 3]).cuda()
    top_p = torch.tensor([[0.9], [0.5], [0.95], [0.3], [1e-300], [0.9999]], dtype=torch.float64)
    every = torch.full((6, 1), vocab).cuda()
    expected = _last_of(scaled[rows].sort(dim=-1, descending=True).values, every, top_p.cuda())
    found = top_p_cutoffs(scaled, rows, top_p.cuda())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


PARAMS = SamplingParams(max_tokens=24, logprobs=2)


def random_prompts(count: int) -> list[list[int]]:
    rng = random.Random(4)
    return [[rng.randrange(3, 900) for _ in range(rng.randint(3, 90))] for _ in range(count)]


STEADY_CASES = [
    *(("internlm2", 64, policy) for policy in (0, 8, 4, "k8v4")),
    *(("gemma2", 128, 8), ("gemma3", 64, 4), ("mixtral", 64, 8)),
]


@pytest.mark.parametrize(("family", "head_dim", "policy"), STEADY_CASES)
def test_deterministic_answers_are_those_of_a_batch_of_64(
    tmp_path: Path, family: str, head_dim: int, policy: int | str
) -> None:
    decoder = int4_decoder(tmp_path, family, head_dim)
    settings: dict[str, Any] = {
        "device": "cuda",
        "deterministic": True,
        "quant_policy": policy,
        "max_batch_size": 64,
        "cache_max_entry_count": "64MiB",
    }
    together = generate(make_engine(decoder, **settings), random_prompts(64), PARAMS)
    alone = generate_alone(make_engine(decoder, **settings), random_prompts(64)[:6], PARAMS)
    assert [exact(done) for done in together[:6]] == [exact(done) for done in alone]


@pytest.mark.parametrize("vocab", [1000, 92544])
@pytest.mark.parametrize("quantized", [True, False], ids=["int4", "bf16"])
def test_all_rows_of_a_tile_compute_the_same(tmp_path: Path, quantized: bool, vocab: int) -> None:
    """So that a token may have any."""
    decoder = int4_decoder(tmp_path, "internlm2", 128, vocab_size=vocab)
    if not quantized:
        decoder = load_decoder(tmp_path / "plain", device="cuda", dtype="bfloat16")
    config = EngineConfig(max_batch_size=16, deterministic=True)
    page_format = PageFormat.for_policy(decoder.config, 0, decoder.dtype)
    runner = runner_for(decoder, PagePool(page_format, 16, decoder.device), config)
    assert isinstance(runner, SteadyKernelRunner)
    batch = [
        Request(
            request_id=number,
            prompt_token_ids=(5, 900, 33),
            params=SamplingParams(),
            seed=0,
            stop_token_ids=frozenset(),
            max_output=10,
            pages=[number],
        )
        for number in range(16)
    ]
    runner.run([Chunk(request=one, start=0, length=2, samples=False) for one in batch])
    rows = runner.run(decodes(batch))
    assert len(rows) == 16
    assert (rows == rows[0]).all()


def exact(done: Completion) -> Any:
    return done.token_ids, done.logprobs


@pytest.mark.parametrize(("family", "head_dim", "policy"), STEADY_CASES)
def test_deterministic_kernels_compute_what_torch_does(
    tmp_path: Path, family: str, head_dim: int, policy: int | str
) -> None:
    decoder = int4_decoder(tmp_path, family, head_dim)
    config = EngineConfig(max_batch_size=ROWS, quant_policy=policy, deterministic=True)
    kernels = runner_for(decoder, new_pool(decoder, policy), config)
    assert isinstance(kernels, SteadyKernelRunner)
    torch_alone = SteadyRunner(decoder, new_pool(decoder, policy))
    batch = requests(ROWS)
    # Keys that were computed in other ways may fall on either side of a code.
    limit = 0.15 if policy == 4 else 0.05
    for chunks in (prompts(batch), decodes(batch)):
        found, expected = kernels.run(chunks), torch_alone.run(chunks)
        assert (found - expected).norm() <= limit * expected.norm()
        for one, row in zip(batch, expected, strict=True):
            one.output_token_ids.append(int(row.argmax()))


#: What one 4-bit code at a tie, which float32's rounding turns, does to the logits of these models:
#: up to 0.017 of their norm. Pages of 4 bits instead of 32 move them by 0.043 to 0.2.
CODE_STEP = 0.04


@pytest.mark.parametrize("policy", [0, 8, 4])
@pytest.mark.parametrize("name", ["stories260k", "demo"])
def test_the_reference_path_gives_the_tokens_of_the_cpu(name: str, policy: int | str) -> None:
    """In float32, of trained models: whole engines, on either device.

    With 4 bits up to where a code at a tie decides; the logits agree to there.
    """
    folder = (
        ROOT / "examples" / "demo_model" / "model"
        if name == "demo"
        else shared_folder("models/stories260k")
    )
    answers = zip(*(reference_answers(folder, at, policy) for at in ("cpu", "cuda")), strict=True)
    for (on_cpu, expected), (on_gpu, found) in answers:
        same = [ours == theirs for ours, theirs in zip(on_gpu, on_cpu, strict=True)]
        if policy != 4:
            assert all(same)
        reached = (*same, False).index(False) + 1
        for ours, theirs in zip(found[:reached], expected[:reached], strict=False):
            assert (ours.cpu() - theirs).norm() <= CODE_STEP * theirs.norm()


def reference_answers(
    folder: Path, device: str, policy: int | str
) -> list[tuple[list[int], list[Tensor]]]:
    """Of each prompt the answer's tokens, and the logits that they come from."""
    decoder = load_decoder(folder, device=device, dtype="float32", session_len=256)
    rng, vocab = random.Random(1), decoder.config.vocab_size
    engine = make_engine(decoder, device=device, quant_policy=policy, cache_max_entry_count="64MiB")
    answers = []
    for length in (4, 30, 100):
        prompt = [rng.randrange(3, vocab) for _ in range(length)]
        with noted_logits(decoder) as found:
            tokens = generate(engine, [prompt], PARAMS)[0].token_ids
        answers.append((tokens, [logits[0] for logits in found]))
    return answers
