"""Two processes share a model: the same answers, and an end when one of them ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy
import pytest
import torch.distributed as dist

from awqkit.checkpoint import open_checkpoint, write_checkpoint
from awqkit_runtime.cache.paged_attention import SequenceSpan
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.decode_inputs import DecodeNumbers
from awqkit_runtime.engine.loading import load_engine
from awqkit_runtime.engine.parallel import communicator
from awqkit_runtime.engine.parallel.communicator import LOOPBACK
from awqkit_runtime.engine.parallel.messages import (
    Assignment,
    DecodeStep,
    NewCache,
    SampledTokens,
    encode,
    receive,
    send_assignment,
)
from awqkit_runtime.engine.parallel.runner import LeadingRunner
from awqkit_runtime.engine.runner import StepInputs
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.errors import CheckpointError, ConfigError, RankError
from tests.checkpoint.folders import quantized_weights
from tests.engine.fakes import generate, run_all
from tests.engine.parallel.ending_rank import start_with_it
from tests.tiny_models import write_tiny_model

PARAMS = SamplingParams(max_tokens=30, ignore_eos=True)
#: Seconds; a process that imports torch on a busy machine needs many of them.
PATIENCE = 120
ASSIGNMENT = Assignment(
    model="none",
    model_format="auto",
    device="cpu",
    dtype="auto",
    session_len=None,
    rank=1,
    ranks=2,
    port=1,
    threads=1,
    max_rows=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4-bit, with three groups of inner channels and one key-value head for two ranks."""
    path = tmp_path_factory.mktemp("model")
    plain = write_tiny_model(path / "plain", intermediate_size=384, num_key_value_heads=1)
    source = open_checkpoint(plain)
    write_checkpoint(path / "int4", quantized_weights(source), source=source, format="awq")
    return path / "int4"


@pytest.mark.timeout(240)
def test_two_ranks_answer_as_one_does_until_one_of_them_is_killed(folder: Path) -> None:
    config = EngineConfig(
        device="cpu", dtype="float32", quant_policy=8, max_prefill_tokens=40, max_batch_size=4
    )
    prompts = [[5 + i % 300 for i in range(length)] for length in (90, 3, 17, 60)]
    alone, _ = load_engine(folder, config)
    expected = [done.token_ids for done in generate(alone, prompts, PARAMS)]
    engine, _ = load_engine(folder, replace(config, tp=2))
    assert [done.token_ids for done in generate(engine, prompts, PARAMS)] == expected
    assert engine.stats().used_pages == 0

    engine.add_request(prompts[0], PARAMS)
    engine.step()
    runner = engine._runner
    assert isinstance(runner, LeadingRunner)
    engine.require_ranks()
    os.kill(runner._team.pids[0], signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(RankError, match="Rank 1 of 2 has ended with code -9"):
        run_all(engine)
    # Far below the time for which ranks wait for each other.
    assert time.monotonic() - start < 60
    with pytest.raises(RankError):
        engine.step()
    with pytest.raises(RankError, match="Rank 1 of 2 has ended with code -9"):
        engine.require_ranks()


def test_a_rank_ends_with_the_process_that_started_it() -> None:
    """Its input ends then, whatever the rank waits for: here for rank 0 to connect."""
    store = dist.TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
    command = [sys.executable, "-m", "awqkit_runtime.engine.parallel"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    send_assignment(process.stdin, replace(ASSIGNMENT, port=store.port))
    process.stdin.close()
    assert process.wait(PATIENCE) == 0


def test_a_rank_that_fails_says_why_and_ends_with_the_code_for_it(tmp_path: Path) -> None:
    """While one of its threads waits for what rank 0 may tell it."""
    store = dist.TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
    command = [sys.executable, "-m", "awqkit_runtime.engine.parallel"]
    alone = replace(ASSIGNMENT, rank=0, ranks=1, port=store.port, model=str(tmp_path / "gone"))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None
        send_assignment(process.stdin, alone)
        assert process.wait(PATIENCE) == CheckpointError.exit_code
        told = process.stderr.read().decode()
    assert told.startswith("Rank 0: ") and "gone" in told and "Fatal" not in told


def test_a_rank_that_cannot_load_ends_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, not when the time for which ranks wait for each other is over."""
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RankError, match="Rank 1 of 2 has ended with code 1"):
        load_engine(folder, EngineConfig(device="cpu", tp=2))


def test_a_rank_that_ends_while_it_connects_ends_the_start(folder: Path, tmp_path: Path) -> None:
    """And the process, although what connects rank 0 goes on waiting."""
    told, seconds = start_with_it(folder, "cpu", tmp_path)
    assert "Rank 1 of 2 has ended with code 3" in told
    assert seconds < communicator.PATIENCE.total_seconds() / 2


def test_messages_arrive_as_they_were_sent() -> None:
    cache = NewCache(num_pages=7, quant_policy="k8v4", noise=True, graph_rows=5, workspace=2**40)
    step = StepInputs(
        token_ids=[5, 6, 7, 9],
        positions=[64, 65, 66, 3],
        spans=[
            SequenceSpan(start=0, length=3, context=64, pages=(4, 2)),
            SequenceSpan(start=3, length=1, context=3, pages=(0,)),
        ],
        followed=[(2, 1), (3, 0)],
    )
    tokens = SampledTokens(count=3)
    stream = BytesIO(encode(cache) + encode(step) + encode(tokens))
    assert receive(stream) == cache
    assert receive(stream) == step
    assert receive(stream) == tokens
    assert receive(stream) is None
    assert receive(BytesIO(encode(step)[:-1])) is None


@pytest.mark.parametrize("pages", [{}, {2: [4, 1], 0: [9]}])
def test_so_do_steps_of_decodes(pages: dict[int, list[int]]) -> None:
    numbers = numpy.array([[5, 0, 0], [0, 13, 2], [64, 7, -1]])
    step = DecodeStep(numbers=DecodeNumbers(numbers=numbers, pages=pages), greedy=bool(pages))
    found = receive(BytesIO(encode(step)))
    assert isinstance(found, DecodeStep) and found.greedy == step.greedy
    assert numpy.array_equal(found.numbers.numbers, numbers) and found.numbers.rows == 3
    assert found.numbers.pages == pages


def test_what_ranks_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tp is 2.*deterministic"):
        EngineConfig(tp=2, deterministic=True)
    experts = write_tiny_model(tmp_path, "mixtral")
    with pytest.raises(ConfigError, match=r"tp is 2.*experts"):
        load_engine(experts, EngineConfig(tp=2, device="cpu"))
