"""The workspace that is planned bounds what torch allocates in a step, and not by much."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from awqkit_runtime.bench import prepared
from awqkit_runtime.bench.prepared import prepare_work
from awqkit_runtime.bench.scenarios import Scenario
from awqkit_runtime.bench.subject import Subject
from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.config import QuantPolicy
from awqkit_runtime.engine.parallel.noise import fill_with_noise
from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.sampler import sample
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.engine.scheduler import Chunk
from awqkit_runtime.engine.steady_runner import SteadyRunner
from awqkit_runtime.engine.workspace import Workspace, workspace
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.models.loader import load_decoder
from tests.engine.fakes import random_frame
from tests.tiny_models import write_tiny_model

VOCAB = 2000


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return wide_decoder(tmp_path_factory.mktemp("model"), "llama")


def wide_decoder(folder: Path, family: str, **overrides: Any) -> Decoder:
    """Wide enough that activations count, not constants."""
    write_tiny_model(
        folder,
        family,
        dtype=torch.bfloat16,
        hidden_size=512,
        intermediate_size=1792,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=VOCAB,
        max_position_embeddings=8192,
        **overrides,
    )
    return load_decoder(folder)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that torch holds during a call beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def one_step(decoder: Decoder, scenario: Scenario) -> Callable[[], object]:
    subject = Subject(decoder=decoder, bits_of=lambda name: None)
    return prepare_work(subject, scenario, scenario.batch * scenario.new_tokens)


def planned(decoder: Decoder, scenario: Scenario) -> Workspace:
    return workspace(
        decoder.config,
        decoder.placement,
        step_tokens=scenario.batch * scenario.new_tokens,
        max_batch_size=scenario.batch,
        session_len=scenario.session_len,
    )


@pytest.mark.parametrize(
    ("batch", "new_tokens", "context", "policy"),
    [(1, 1024, 0, 0), (1, 1024, 0, 4), (1, 256, 3000, 0), (1, 256, 3000, 8), (16, 1, 1000, 4)],
)
def test_a_step_stays_within_its_workspace(
    decoder: Decoder, batch: int, new_tokens: int, context: int, policy: QuantPolicy
) -> None:
    scenario = Scenario(
        name="test", batch=batch, new_tokens=new_tokens, context=context, quant_policy=policy
    )
    step = one_step(decoder, scenario)
    step()
    bound = planned(decoder, scenario).total
    assert bound / 3 < peak_bytes(step) <= bound


@pytest.mark.parametrize(("batch", "new_tokens", "context"), [(1, 1024, 0), (16, 1, 1000)])
def test_so_does_one_over_keys_in_another_frame(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, batch: int, new_tokens: int, context: int
) -> None:
    framed = partial(PagePool, key_frame=random_frame(decoder.config))
    monkeypatch.setattr(prepared, "PagePool", framed)
    scenario = Scenario(
        name="test", batch=batch, new_tokens=new_tokens, context=context, quant_policy=4
    )
    step = one_step(decoder, scenario)
    step()
    peak, bound = peak_bytes(step), planned(decoder, scenario).total
    assert bound / 3 < peak <= bound


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("gemma2", {"sliding_window": 1024}),
        ("qwen3_moe", {"moe_intermediate_size": 512, "num_experts": 16}),
    ],
    ids=["soft caps", "experts"],
)
@pytest.mark.parametrize(("batch", "new_tokens", "context"), [(1, 768, 500), (8, 1, 1500)])
def test_so_does_one_of_a_model_with(
    tmp_path: Path,
    family: str,
    overrides: dict[str, Any],
    batch: int,
    new_tokens: int,
    context: int,
) -> None:
    decoder = wide_decoder(tmp_path, family, **overrides)
    scenario = Scenario(name="test", batch=batch, new_tokens=new_tokens, context=context)
    peak = peak_bytes(one_step(decoder, scenario))
    bound = planned(decoder, scenario).total
    assert bound / 3 < peak <= bound


@pytest.mark.parametrize("policy", [0, 4])
@pytest.mark.parametrize(
    ("family", "overrides"), [("llama", {}), ("gemma2", {"sliding_window": 8000})]
)
@pytest.mark.parametrize(("new_tokens", "context"), [(16, 5000), (64, 600)])
def test_so_does_a_deterministic_one(
    tmp_path: Path,
    family: str,
    overrides: dict[str, Any],
    policy: QuantPolicy,
    new_tokens: int,
    context: int,
) -> None:
    decoder, length = wide_decoder(tmp_path, family, **overrides), context + new_tokens
    form = PageFormat.for_policy(decoder.config, policy, decoder.dtype)
    runner = SteadyRunner(decoder, PagePool(form, pages_for(length), "cpu"))
    fill_with_noise(runner.pool)
    request = Request(
        request_id=0,
        prompt_token_ids=(1,) * length,
        params=SamplingParams(),
        seed=0,
        stop_token_ids=frozenset(),
        max_output=1,
        pages=list(range(pages_for(length))),
    )
    chunk = Chunk(request=request, start=context, length=new_tokens, samples=False)
    bound = workspace(
        decoder.config,
        decoder.placement,
        step_tokens=new_tokens,
        max_batch_size=1,
        session_len=length,
        deterministic=True,
    ).activations
    peak = peak_bytes(lambda: runner.run([chunk]))
    assert bound / 3 < peak <= bound


def test_sampling_stays_within_its_share(decoder: Decoder) -> None:
    params = SamplingParams(
        temperature=0.8, top_k=0, top_p=0.9, repetition_penalty=1.1, logprobs=3, max_tokens=4
    )
    requests = [
        Request(
            request_id=number,
            prompt_token_ids=(1, 2),
            params=params,
            seed=number,
            stop_token_ids=frozenset(),
            max_output=4,
        )
        for number in range(8)
    ]
    logits = torch.randn(8, VOCAB)
    scenario = Scenario(name="test", batch=8, new_tokens=1, context=1)
    peak = logits.nbytes + peak_bytes(lambda: sample(logits, requests))
    assert planned(decoder, scenario).logits / 2 < peak <= planned(decoder, scenario).logits


def on_a_gpu(decoder: Decoder, session_len: int, *, deterministic: bool = False) -> int:
    placement = Placement(device=torch.device("cuda"), dtype=torch.bfloat16)
    return workspace(
        decoder.config,
        placement,
        step_tokens=1024,
        max_batch_size=4,
        session_len=session_len,
        deterministic=deterministic,
    ).activations


def test_kernels_gather_a_bounded_number_of_keys(decoder: Decoder) -> None:
    """Without masks, and with sums over pieces of contexts that are longer."""
    once, pieces, longer = (on_a_gpu(decoder, length) for length in (32768, 10**5, 10**6))
    assert pieces - once == decoder.config.q_size * 1024 * 10
    assert longer == pieces
    assert on_a_gpu(decoder, 10**5, deterministic=True) > pieces


def test_windows_are_gathered_whole(tmp_path: Path) -> None:
    decoder = wide_decoder(tmp_path, "mistral", sliding_window=10**5)
    keys = 10**5 + 1024 - 32768
    width = 2 * 2 * decoder.config.kv_size
    assert on_a_gpu(decoder, 10**6) == keys * width + on_a_gpu(
        wide_decoder(tmp_path, "mistral", sliding_window=10), 10**6
    )


def test_a_deterministic_step_keeps_no_more_logits_than_it_samples(decoder: Decoder) -> None:
    """Of each tile that ends a prompt, one row of sixteen."""
    form = PageFormat.for_policy(decoder.config, 0, decoder.dtype)
    runner = SteadyRunner(decoder, PagePool(form, 16, "cpu"))
    chunks = [
        Chunk(
            request=Request(
                request_id=number,
                prompt_token_ids=(1,) * 3,
                params=SamplingParams(),
                seed=0,
                stop_token_ids=frozenset(),
                max_output=1,
                pages=[number],
            ),
            start=0,
            length=3,
            samples=True,
        )
        for number in range(16)
    ]
    one, all_of_them = (
        peak_bytes(partial(runner.run, chunks[:count])) for count in (1, len(chunks))
    )
    logits = len(chunks) * VOCAB * 4
    assert logits / 2 < all_of_them - one < 4 * logits
