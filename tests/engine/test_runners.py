"""What is compiled before an engine says that it is ready, with a stand-in for the GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from awqkit.checkpoint import open_checkpoint
from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.config import EngineConfig, QuantPolicy
from awqkit_runtime.engine import runners
from awqkit_runtime.engine.graph_runner import GraphRunner
from awqkit_runtime.engine.parallel.following import following_runner
from awqkit_runtime.engine.parallel.loading import SharedModel
from awqkit_runtime.engine.parallel.messages import NewCache
from awqkit_runtime.engine.parallel.runner import LeadingRunner
from awqkit_runtime.engine.parallel.shares import Share
from awqkit_runtime.engine.runner import Runner
from awqkit_runtime.engine.runners import runner_for
from awqkit_runtime.engine.steady_kernel_runner import SteadyKernelRunner
from awqkit_runtime.engine.steady_runner import SteadyRunner
from awqkit_runtime.layers.placement import Fusions, Placement
from tests.engine.recorded_graphs import RecordedGraphs
from tests.tiny_models import write_tiny_model

GPU = torch.device("cuda", 0)
PLACEMENT = Placement(device=GPU, dtype=torch.bfloat16)
SETTINGS = EngineConfig(max_batch_size=4)
STEADY = EngineConfig(max_batch_size=4, deterministic=True)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What prepare_decode or prepare_steady_decode was asked for."""
    calls: list[tuple[Any, ...]] = []
    for name in ("prepare_decode", "prepare_steady_decode"):
        monkeypatch.setattr(runners, name, lambda *arguments: calls.append(arguments))
    return calls


def on_a_gpu(folder: Path, family: str, placement: Placement = PLACEMENT, **shape: Any) -> Any:
    """What runners ask of a decoder."""
    config = open_checkpoint(write_tiny_model(folder, family, **{"head_dim": 64, **shape})).config
    return SimpleNamespace(
        config=config,
        placement=placement,
        device=placement.device,
        dtype=placement.dtype,
        session_len=64,
    )


def pool_of(decoder: Any, policy: QuantPolicy = 0) -> Any:
    form = PageFormat.for_policy(decoder.config, policy, decoder.dtype)
    return SimpleNamespace(format=form, device=decoder.device, num_pages=3)


@pytest.mark.parametrize("policy", [0, 8, 4, "k8v4"])
def test_decodes_of_experts_are_compiled_with_the_engine(
    tmp_path: Path, prepared: list[tuple[Any, ...]], policy: QuantPolicy
) -> None:
    """Though the host decides on the way, so that there are no graphs."""
    decoder = on_a_gpu(tmp_path, "mixtral")
    pool = pool_of(decoder, policy)
    assert type(runner_for(decoder, pool, SETTINGS)) is Runner
    assert prepared == [(pool.format, 4, GPU)]


def test_those_of_graphs_once(
    tmp_path: Path, prepared: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "CudaGraphs", lambda *arguments, **settings: RecordedGraphs())
    monkeypatch.setattr("awqkit_runtime.engine.graph_runner.DecodeInputs", lambda *arguments: None)
    decoder = on_a_gpu(tmp_path, "llama")
    pool = pool_of(decoder)
    assert type(runner_for(decoder, pool, SETTINGS)) is GraphRunner
    assert prepared == [(pool.format, 4, GPU)]


@pytest.mark.parametrize(
    ("placement", "head_dim"),
    [
        (PLACEMENT, 32),
        (Placement(device=GPU, dtype=torch.float32), 64),
        (Placement(device=GPU, dtype=torch.bfloat16, has_cuda_kernels=False), 64),
        (Placement(device=GPU, dtype=torch.bfloat16, fusions=Fusions(rotary=False)), 64),
    ],
    ids=["other heads", "other numbers", "no kernels", "single operations"],
)
def test_nothing_is_compiled_that_no_step_launches(
    tmp_path: Path, prepared: list[tuple[Any, ...]], placement: Placement, head_dim: int
) -> None:
    decoder = on_a_gpu(tmp_path, "mixtral", placement, head_dim=head_dim)
    assert type(runner_for(decoder, pool_of(decoder), SETTINGS)) is Runner
    assert not prepared


@pytest.mark.parametrize(("family", "rows"), [("llama", 16), ("mixtral", 1)])
def test_those_of_steady_tiles_are_compiled(
    tmp_path: Path,
    prepared: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    rows: int,
) -> None:
    """Tiles of one token where experts are, of which no graph is made either."""
    graphs: list[RecordedGraphs] = []

    def new_graphs(*arguments: Any, **settings: Any) -> RecordedGraphs:
        graphs.append(RecordedGraphs())
        return graphs[-1]

    monkeypatch.setattr(runners, "CudaGraphs", new_graphs)
    monkeypatch.setattr(
        "awqkit_runtime.engine.steady_kernel_runner.DecodeInputs", lambda *arguments: None
    )
    decoder = on_a_gpu(tmp_path, family)
    pool = pool_of(decoder)
    assert type(runner_for(decoder, pool, STEADY)) is SteadyKernelRunner
    assert prepared == [(pool.format, 4, rows, GPU)]
    assert len(graphs) == (family == "llama")


def test_nothing_is_compiled_for_steps_that_attend_token_by_token(
    tmp_path: Path, prepared: list[tuple[Any, ...]]
) -> None:
    placement = Placement(device=GPU, dtype=torch.float32)
    decoder = on_a_gpu(tmp_path, "llama", placement)
    assert type(runner_for(decoder, pool_of(decoder), STEADY)) is SteadyRunner
    assert not prepared


def test_ranks_without_graphs_compile_them_too(
    tmp_path: Path, prepared: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those whose GPUs do not reach each other's memory."""
    told: list[NewCache] = []
    communicator: Any = SimpleNamespace(peers=None, sum_=None)
    team: Any = SimpleNamespace(ranks=2, communicator=communicator, tell=told.append)
    decoder = on_a_gpu(tmp_path, "llama")
    pool = pool_of(decoder)
    monkeypatch.setattr("awqkit_runtime.engine.parallel.loading.set_aside", lambda *size: None)
    monkeypatch.setattr("awqkit_runtime.engine.parallel.following.set_aside", lambda *size: None)
    monkeypatch.setattr("awqkit_runtime.engine.parallel.following.PagePool", lambda *size: pool)

    shared = SharedModel(decoder=decoder, team=team, free_bytes=0)
    assert type(shared.new_runner(decoder, pool, config=SETTINGS)) is LeadingRunner
    assert prepared == [(pool.format, 4, GPU)]
    following_runner(decoder, communicator, Share(rank=1, ranks=2), told[0])
    assert prepared == [(pool.format, 4, GPU)] * 2
