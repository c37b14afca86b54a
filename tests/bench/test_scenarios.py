"""The work of a step, against numbers written out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from awqkit.checkpoint import DecoderConfig
from awqkit_runtime.bench.scenarios import (
    CPU_SCENARIOS,
    GPU_SCENARIOS,
    SCENARIOS,
    Scenario,
    default_scenarios,
)
from awqkit_runtime.bench.work import pages_of, work_of
from awqkit_runtime.layers.placement import Placement

CONFIG = DecoderConfig(
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    vocab_size=100,
    max_position_embeddings=64,
    norm_eps=1e-5,
    dtype="float32",
)
FP32 = Placement(device=torch.device("cpu"), dtype=torch.float32)
LINEARS = 2 * (64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 96)
NORMS = (2 * 2 + 1) * 64


def work(scenario: Scenario, config: DecoderConfig = CONFIG) -> tuple[int, int]:
    found = work_of(scenario, config, lambda name: None, FP32)
    return found.bytes, found.operations


def test_a_decode_step_reads_all_weights_but_the_embedding_and_the_cache() -> None:
    step = Scenario(name="test", batch=3, new_tokens=1, context=20)
    cache = 3 * 21 * 2 * 2 * 2 * 16 * 4  # tokens, layers, keys and values, heads, elements, bytes
    attention = 3 * 21 * 64 * 2 * 4
    assert work(step) == (
        4 * (LINEARS + NORMS + 6400) + cache,
        2 * 3 * (LINEARS + 6400) + attention,
    )


def test_a_tied_head_is_read_as_well() -> None:
    step = Scenario(name="test", batch=3, new_tokens=1, context=20)
    tied = dataclasses.replace(CONFIG, tie_word_embeddings=True)
    assert work(step, tied) == work(step)


def test_a_prompt_sees_its_own_past_and_needs_one_row_of_logits() -> None:
    prompt = Scenario(name="test", batch=1, new_tokens=10, context=0)
    pairs = 10 * 11 // 2
    assert work(prompt)[1] == 2 * 10 * LINEARS + 2 * 6400 + pairs * 64 * 2 * 4


def test_a_quantized_cache_moves_fewer_bytes() -> None:
    dense = Scenario(name="test", batch=1, new_tokens=1, context=63)
    int4 = dataclasses.replace(dense, quant_policy=4)
    vectors = 64 * 2 * 2 * 2
    assert work(dense)[0] - work(int4)[0] == vectors * (16 * 4 - (8 + 4))


def test_names_are_unique_and_pages_enough() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
    assert pages_of(Scenario(name="test", batch=2, new_tokens=1, context=64)) == 4


def test_the_table_of_a_gpu_and_the_short_one_of_a_cpu() -> None:
    assert [scenario.name for scenario in default_scenarios("cuda")] == [
        "batch-1",
        "batch-8",
        "batch-32",
        "batch-128",
        "batch-256",
        "batch-1-context-15000",
        "batch-16-context-8000",
        "batch-16-context-8000-int8",
        "batch-16-context-8000-int4",
        "prefill-2048",
        "prefill-8192",
        "prefill-16x2048",
    ]
    assert default_scenarios("cpu") == CPU_SCENARIOS
    assert {*GPU_SCENARIOS, *CPU_SCENARIOS} == {*SCENARIOS}
    assert all(s.batch * s.session_len < 16000 for s in CPU_SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_scenario_is_a_prompt_or_a_decode(scenario: Scenario) -> None:
    assert (scenario.context == 0) != (scenario.new_tokens == 1)
