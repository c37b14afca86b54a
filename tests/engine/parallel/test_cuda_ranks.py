"""Two GPUs of one host share a model, through kernels and NCCL: the tokens of one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit.checkpoint import open_checkpoint, write_checkpoint
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.loading import load_engine
from awqkit_runtime.engine.parallel.communicator import PATIENCE
from awqkit_runtime.engine.parallel.runner import LeadingGraphRunner, LeadingRunner
from awqkit_runtime.engine.parallel.team import Team
from awqkit_runtime.engine.request import Completion
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.errors import RankError
from tests.checkpoint.folders import quantized_weights, write_quantized_ends
from tests.engine.fakes import generate, run_all
from tests.engine.parallel.ending_rank import start_with_it
from tests.tiny_models import write_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(240),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs"),
    # Else steps would go on without one.
    pytest.mark.filterwarnings("error:Steps of .* without a CUDA graph"),
    pytest.mark.filterwarnings("error:The GPUs add up through NCCL"),
]
DEMO = Path(__file__).parents[3] / "examples" / "demo_model" / "model"
#: Between the log-probabilities of the two best tokens; two BF16 sums instead of one move them by
#: less.
CLOSE = 0.1
PARAMS = SamplingParams(max_tokens=24, ignore_eos=True, logprobs=2)
GREEDY = replace(PARAMS, logprobs=None)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4-bit, with three groups of inner channels and one key-value head for two ranks."""
    path = tmp_path_factory.mktemp("model")
    shape = {"hidden_size": 512, "intermediate_size": 384, "head_dim": 128}
    plain = write_tiny_model(path / "plain", "qwen2", num_key_value_heads=1, **shape)
    source = open_checkpoint(plain)
    write_checkpoint(path / "int4", quantized_weights(source), source=source, format="awq")
    return path / "int4"


@contextmanager
def engine_of(folder: Path, **settings: Any) -> Iterator[Engine]:
    config = EngineConfig(
        device="cuda", cache_max_entry_count="64MiB", session_len=512, max_batch_size=8, **settings
    )
    engine, _ = load_engine(folder, config)
    yield engine
    if config.tp > 1:
        team(engine).close()


def team(engine: Engine) -> Team:
    runner = engine._runner
    assert isinstance(runner, LeadingRunner)
    return runner._team


def prompts() -> list[list[int]]:
    rng = random.Random(2)
    return [[rng.randrange(3, 300) for _ in range(length)] for length in (4, 30, 100)]


def answers(folder: Path, **settings: Any) -> list[Completion]:
    with engine_of(folder, **settings) as engine:
        return generate(engine, prompts(), PARAMS)


def clear_steps(done: Completion) -> int:
    """Steps before the first one whose two best tokens lie close."""
    assert done.logprobs is not None
    for step, found in enumerate(done.logprobs):
        first, second = sorted(found.values(), reverse=True)[:2]
        if first - second <= CLOSE:
            return step
    return len(done.logprobs)


def test_in_float32_the_tokens_are_those_of_one_gpu(uneven: Path) -> None:
    for folder in (uneven, DEMO):
        one, two = (answers(folder, tp=tp, dtype="float32", quant_policy=0) for tp in (1, 2))
        assert [done.token_ids for done in one] == [done.token_ids for done in two]


def test_kernels_give_them_as_far_as_roundings_do_not_decide(uneven: Path) -> None:
    compared = 0
    for folder in (uneven, DEMO):
        one, two = (answers(folder, tp=tp, dtype="bfloat16", quant_policy=8) for tp in (1, 2))
        for alone, shared in zip(one, two, strict=True):
            sure = clear_steps(alone)
            assert alone.token_ids[:sure] == shared.token_ids[:sure]
            compared += sure
    assert compared >= 20


def test_graphs_choose_them_together_alone_and_beside_drawn_ones(uneven: Path) -> None:
    compared = 0
    for folder, policy in ((uneven, 8), (DEMO, 0)):
        one = answers(folder, dtype="bfloat16", quant_policy=policy)
        with engine_of(folder, tp=2, dtype="bfloat16", quant_policy=policy) as engine:
            runner = engine._runner
            assert isinstance(runner, LeadingGraphRunner)
            together = generate(engine, prompts(), GREEDY)
            drawing = replace(GREEDY, temperature=1.0, seed=1, max_tokens=9)
            mixed = generate(
                engine, [*prompts(), [5, 6], *prompts()], [*[GREEDY] * 3, drawing, *[GREEDY] * 3]
            )
            again = generate(engine, prompts(), GREEDY)
            # The greedy ones go on alone when what is drawn has ended.
            assert runner._steps and len(runner._greedy_steps) >= 2
            assert None not in {*runner._steps.values(), *runner._greedy_steps.values()}
            assert engine.stats().used_pages == 0
        for found in (together, mixed[:3], mixed[4:], again):
            for alone, shared in zip(one, found, strict=True):
                sure = clear_steps(alone)
                assert alone.token_ids[:sure] == shared.token_ids[:sure]
                compared += sure
    assert compared >= 60


def test_of_a_quantized_head_graphs_choose_what_rank_0_does(tmp_path: Path) -> None:
    """Beside a dense embedding, which the other ranks have in its place."""
    folder = write_quantized_ends(
        tmp_path, embedding_bits=None, head_bits=4, tied=False, hidden_size=512, head_dim=128
    )
    with engine_of(folder, tp=2, dtype="bfloat16") as engine:
        by_rank_0 = generate(engine, prompts(), PARAMS)
        together = generate(engine, prompts(), GREEDY)
    compared = 0
    for alone, shared in zip(by_rank_0, together, strict=True):
        sure = clear_steps(alone)
        assert alone.token_ids[:sure] == shared.token_ids[:sure]
        compared += sure
    assert compared >= 10


def test_all_ranks_go_on_after_long_prompts_in_parts(uneven: Path) -> None:
    """Parts of more rows than kernels add up: NCCL and kernels in turn."""
    prompt = [7 + i % 250 for i in range(400)]
    for folder in (uneven, DEMO):
        settings: dict[str, Any] = {"dtype": "bfloat16", "max_prefill_tokens": 150}
        with engine_of(folder, **settings) as engine:
            (alone,) = generate(engine, [prompt], PARAMS)
        with engine_of(folder, tp=2, **settings) as engine:
            (shared,) = generate(engine, [prompt], GREEDY)
        sure = clear_steps(alone)
        assert alone.token_ids[:sure] == shared.token_ids[:sure]


def test_a_rank_that_is_killed_ends_the_engine_whatever_its_kernels_wait_for(uneven: Path) -> None:
    with engine_of(uneven, tp=2, dtype="bfloat16") as engine:
        engine.add_request(prompts()[0], replace(GREEDY, max_tokens=400))
        for _ in range(10):
            engine.step()
        os.kill(team(engine).pids[0], signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(RankError, match="Rank 1 of 2 has ended with code -9"):
            run_all(engine)
        assert time.monotonic() - start < 60
        torch.cuda.synchronize()


ENDLESS = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.engine.parallel.test_cuda_ranks import GREEDY, engine_of, prompts, team
with engine_of(Path(sys.argv[1]), tp=2, dtype="bfloat16") as engine:
    while True:
        engine.add_request(prompts()[0], replace(GREEDY, max_tokens=400))
        for _ in range(300):
            engine.step()
        print(team(engine).pids[0], flush=True)
"""


def test_a_rank_ends_when_rank_0_is_killed_whatever_its_kernels_wait_for(uneven: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(uneven)], stdout=subprocess.PIPE, text=True
    ) as rank_0:
        assert rank_0.stdout is not None
        pid = int(rank_0.stdout.readline())
        rank_0.kill()
    deadline = time.monotonic() + 30
    while runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def runs(pid: int) -> bool:
    """Not so a process that has ended and that nobody has asked after."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_rank_that_ends_while_it_connects_ends_the_start(uneven: Path, tmp_path: Path) -> None:
    told, seconds = start_with_it(uneven, "cuda", tmp_path)
    assert "Rank 1 of 2 has ended with code 3" in told
    assert seconds < PATIENCE.total_seconds() / 2
