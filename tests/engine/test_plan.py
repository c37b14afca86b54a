"""The arithmetic of a plan, against sums written out by hand and against the engine itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit.checkpoint import DecoderConfig
from awqkit_runtime.cache.page_format import PAGE_TOKENS
from awqkit_runtime.config import QUANT_POLICIES, EngineConfig, QuantPolicy
from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.loading import load_engine
from awqkit_runtime.engine.plan import DoesNotFit, MemoryPlan, plan_memory
from awqkit_runtime.errors import ConfigError
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.models.footprint import loaded_bytes, packable
from awqkit_runtime.models.loader import load_decoder
from tests.engine.tokenizers_for_tests import byte_level_tokenizer
from tests.tiny_models import write_tiny_model

GIB = 2**30
GPU = Placement(device=torch.device("cuda"), dtype=torch.bfloat16)
CPU = Placement(device=torch.device("cpu"), dtype=torch.bfloat16)
#: The shape of a chat model of 7.7 billion parameters.
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
TABLES = 2 * 92544 * 4096
NORMS = 65 * 4096
LINEARS = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096)
DENSE = 2 * (TABLES + NORMS + LINEARS)
#: 128 codes of half a byte, an FP16 scale, a BF16 zero point.
INT4 = 2 * (TABLES + NORMS) + LINEARS // 128 * (64 + 2 + 2)


def plan(
    *,
    weights: int = DENSE,
    memory: int = 24 * GIB,
    placement: Placement = GPU,
    config: DecoderConfig = LARGE,
    **settings: object,
) -> MemoryPlan:
    engine = EngineConfig(**settings)  # type: ignore[arg-type]
    return plan_memory(config, weights=weights, memory=memory, engine=engine, placement=placement)


def test_the_weights_of_a_large_model() -> None:
    assert loaded_bytes(LARGE, lambda name: None, GPU) == DENSE == 15_475_417_088
    assert loaded_bytes(LARGE, packable(LARGE), GPU) == INT4 == 5_224_538_112


def test_eight_tenths_of_what_is_free_after_the_weights() -> None:
    found = plan()
    assert found.bytes_per_token == 32 * 2 * 8 * 128 * 2
    assert found.free == 24 * GIB - DENSE
    assert found.pages == int(0.8 * found.free) // (64 * 131072) == 981
    assert (found.tokens, found.sessions) == (981 * 64, 1)
    assert found.cache == 981 * 64 * 131072
    assert found.session_bytes == 4 * GIB
    kept = found.workspace.total + found.graphs + found.libraries
    assert found.left == found.free - found.cache - kept >= 0


def test_int4_weights_and_an_int4_cache_of_four_tenths() -> None:
    found = plan(weights=INT4, quant_policy=4, cache_max_entry_count=0.4)
    assert found.bytes_per_token == 32 * 2 * 8 * (64 + 4) == 34_816
    assert found.pages == int(0.4 * (24 * GIB - INT4)) // (64 * 34_816) == 3688
    assert found.sessions == 3688 // 512 == 7


@pytest.mark.parametrize(("policy", "vector"), [(0, 256), (8, 132), (4, 68), ("k8v4", 100)])
def test_bytes_of_a_token(policy: QuantPolicy, vector: int) -> None:
    assert plan(quant_policy=policy).bytes_per_token == 32 * 2 * 8 * vector


def test_an_absolute_cache_and_a_short_session() -> None:
    found = plan(cache_max_entry_count="2GiB", session_len=1000, max_batch_size=4)
    assert (found.pages, found.sessions) == (256, 256 // 16)
    assert found.workspace.logits == 4 * 92544 * 40


def test_a_cache_for_so_many_tokens() -> None:
    assert plan(cache_max_entry_count="40000tok").tokens == 625 * 64 == 40_000
    with pytest.raises(ConfigError, match="only"):
        plan(cache_max_entry_count="200000tok")


def test_on_a_cpu_no_more_than_all_sessions_need() -> None:
    settings = {"session_len": 100, "max_batch_size": 3}
    assert plan(placement=CPU, **settings).pages == 3 * 2
    assert plan(placement=GPU, **settings).pages == 981


@pytest.mark.parametrize(
    ("settings", "lacking", "text"),
    [
        ({"memory": 14 * GIB}, "no model", "weights alone take 14.41 GiB.*awqkit-convert"),
        ({"memory": DENSE}, "no model", "weights alone"),
        ({"memory": 16 * GIB}, "no session", "session_len lower .up to 3392 fits.\\.$"),
    ],
)
def test_what_does_not_fit_says_what_helps(
    settings: dict[str, int], lacking: str, text: str
) -> None:
    with pytest.raises(DoesNotFit, match=text) as error:
        plan(**settings)  # type: ignore[arg-type]
    assert error.value.lacking == lacking


def test_on_a_gpu_the_cache_leaves_room_for_the_steps() -> None:
    """Their memory is set aside, as running out of it would end the process."""
    found = plan(cache_max_entry_count=1.0)
    page = found.bytes_per_token * PAGE_TOKENS
    assert 0 <= found.left < page and found.cache < found.free
    assert plan(cache_max_entry_count=1.0, placement=CPU).left < 0
    with pytest.raises(ConfigError, match=r"only .* are free for it"):
        plan(cache_max_entry_count=found.free - 1)


def test_graphs_are_planned_where_steps_run_as_graphs() -> None:
    found = plan()
    rows = 128 * (5 * 8 + 4 * 512 + 2 * 4096)
    launches = 2 * 19 * 32 * 12 * 4096
    pool = 128 * 2 * (4 * 4096 + 4 * 14336) + 128 * 8 * 128 + 128 * 2 * 92544 + 32 * 2**20
    assert found.graphs == rows + launches + pool + 20 * 2**20
    assert found.libraries > 0
    assert plan(placement=CPU).graphs == plan(placement=CPU).libraries == 0
    assert plan(max_batch_size=256).graphs > found.graphs


def test_a_deterministic_engine_has_one_graph() -> None:
    """Of a tile of 16 rows, however many sequences run at once."""
    found = plan(deterministic=True)
    rows = 16 * (5 * 8 + 4 * 512 + 2 * 4096)
    pool = 16 * 2 * (4 * 4096 + 4 * 14336) + 16 * 8 * 128 + 16 * 2 * 92544 + 32 * 2**20
    assert found.graphs == rows + 32 * 12 * 4096 + pool + 20 * 2**20
    assert plan(deterministic=True, max_batch_size=256).graphs == found.graphs
    assert plan(deterministic=True, placement=CPU).graphs == 0


def test_kernels_of_a_deterministic_engine_gather_nothing() -> None:
    def activations(session_len: int, **settings: Any) -> int:
        found = plan(deterministic=True, session_len=session_len, max_prefill_tokens=64, **settings)
        return found.workspace.activations

    assert activations(32768) == activations(4096)
    assert activations(32768, placement=CPU) > activations(4096, placement=CPU)


def test_steps_are_as_large_as_the_memory_bears() -> None:
    assert plan(weights=INT4, memory=80 * GIB).step_tokens == 8192
    sizes = [
        plan(weights=INT4, memory=size * GIB, session_len=4096).step_tokens
        for size in range(10, 25)
    ]
    assert sizes == sorted(sizes) and set(sizes) == {2048, 4096, 8192}
    for size, tokens in zip(range(10, 25), sizes, strict=True):
        found = plan(weights=INT4, memory=size * GIB, session_len=4096)
        assert tokens == 2048 or found.workspace.total <= found.free / 8
    assert plan(weights=INT4, memory=80 * GIB, max_prefill_tokens=100).step_tokens == 100
    assert plan(memory=80 * GIB, placement=CPU).step_tokens == 2048


def test_settings_against_the_model_or_the_memory() -> None:
    with pytest.raises(ConfigError, match="at most 32768"):
        plan(session_len=32769)
    with pytest.raises(ConfigError, match="only"):
        plan(cache_max_entry_count="20GiB")


@pytest.mark.parametrize("policy", QUANT_POLICIES)
@pytest.mark.parametrize("free", [2**17 + 12345, 2**30])
def test_the_engine_allocates_what_the_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: QuantPolicy, free: int
) -> None:
    decoder = load_decoder(write_tiny_model(tmp_path, max_position_embeddings=64), device="cpu")
    settings = EngineConfig(quant_policy=policy, device="cpu", max_batch_size=3)
    monkeypatch.setattr("awqkit_runtime.engine.engine.free_memory", lambda device: free)
    engine = Engine(decoder, byte_level_tokenizer(), settings)
    weights = loaded_bytes(decoder.config, lambda name: None, decoder.placement)
    found = plan_memory(
        decoder.config,
        weights=weights,
        memory=weights + free,
        engine=settings,
        placement=decoder.placement,
    )
    assert found.pages == engine.stats().total_pages
    assert found.cache == found.pages * PAGE_TOKENS * found.bytes_per_token


def test_the_plan_is_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loading(Exception):
        pass

    def load(*args: object, **settings: object) -> None:
        assert told
        raise Loading

    told: list[MemoryPlan] = []
    monkeypatch.setattr("awqkit_runtime.engine.loading.load_decoder", load)
    folder = write_tiny_model(tmp_path, max_position_embeddings=64)
    config = EngineConfig(device="cpu", cache_max_entry_count="128tok", max_batch_size=3)
    with pytest.raises(Loading):
        load_engine(folder, config, announce=told.append)
    assert told[0].tokens == 128 and told[0].left > 0
    assert "for a cache of 128 tokens" in told[0].line and "fits besides" in told[0].line
    assert "may not fit besides" in plan(cache_max_entry_count=1.0, placement=CPU).line
    assert "for graphs and libraries, fits besides" in plan().line
    monkeypatch.setattr("awqkit_runtime.engine.loading.free_memory", lambda device: 1000)
    with pytest.raises(DoesNotFit, match="weights alone"):
        load_engine(folder, config)
