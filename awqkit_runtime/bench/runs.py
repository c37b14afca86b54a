"""Runs scenarios with the engine's own parts, within the memory and the time that there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch

from awqkit_runtime.bench.machine import multiply_rate, read_bandwidth
from awqkit_runtime.bench.scenarios import Scenario, Work, work_of
from awqkit_runtime.bench.timing import time_calls
from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat, pages_for
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine.memory import free_memory
from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.runner import Runner
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.engine.scheduler import Chunk
from awqkit_runtime.engine.workspace import workspace
from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.units import human_bytes


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What the machine can do at best: bytes and operations per second."""

    bandwidth: float
    multiply_rate: float

    def limit(self, work: Work) -> tuple[float, Literal["memory", "arithmetic"]]:
        """Seconds that this work takes at least, and what holds it up."""
        moving, computing = work.bytes / self.bandwidth, work.operations / self.multiply_rate
        return (moving, "memory") if moving >= computing else (computing, "arithmetic")


@dataclass(frozen=True, kw_only=True)
class Result:
    """A scenario's median time in seconds, over so many calls, and the least that it could be."""

    scenario: Scenario
    seconds: float
    calls: int
    work: Work
    limit: float
    limited_by: Literal["memory", "arithmetic"]

    @property
    def tokens_per_second(self) -> float:
        return self.scenario.batch * self.scenario.new_tokens / self.seconds


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A scenario that this model, machine or time does not allow."""

    scenario: Scenario
    reason: str


def measure_speed(decoder: Decoder) -> Speed:
    """Of the decoder's device, multiplying in the type of its activations."""
    return Speed(
        bandwidth=read_bandwidth(decoder.device),
        multiply_rate=multiply_rate(decoder.device, decoder.placement.activation_dtype),
    )


def run_scenarios(
    decoder: Decoder,
    is_packed: Callable[[str], bool],
    scenarios: Sequence[Scenario],
    speed: Speed,
    *,
    seconds: float,
) -> Iterator[Result | Skipped]:
    """Yield what came of each scenario, as it comes; they share `seconds` evenly.

    is_packed: which linears of the decoder are kept in 4 bits.
    """
    deadline = time.perf_counter() + seconds
    for index, scenario in enumerate(scenarios):
        left = deadline - time.perf_counter()
        work = work_of(scenario, decoder.config, is_packed, decoder.placement)
        limit, limited_by = speed.limit(work)
        reason = _reason_to_skip(decoder, scenario) or _too_slow(limit, left)
        if reason:
            yield Skipped(scenario=scenario, reason=reason)
            continue
        step = prepare_step(decoder, scenario)
        times = time_calls(step, decoder.device, seconds=left / (len(scenarios) - index))
        yield Result(
            scenario=scenario,
            seconds=median(times),
            calls=len(times),
            work=work,
            limit=limit,
            limited_by=limited_by,
        )


def prepare_step(decoder: Decoder, scenario: Scenario) -> Callable[[], torch.Tensor]:
    """A call that computes the scenario's step: random tokens over random keys and values."""
    page_format = PageFormat.for_policy(decoder.config, scenario.quant_policy, decoder.dtype)
    pool = PagePool(page_format, scenario.pages, decoder.device)
    _fill(pool)
    generator = torch.Generator().manual_seed(0)
    per_sequence = pages_for(scenario.session_len)
    chunks = []
    for number in range(scenario.batch):
        tokens = torch.randint(
            decoder.config.vocab_size, (scenario.session_len,), generator=generator
        )
        request = Request(
            request_id=number,
            prompt_token_ids=tuple(tokens.tolist()),
            params=SamplingParams(),
            seed=0,
            stop_token_ids=frozenset(),
            max_output=1,
        )
        request.pages = list(range(number * per_sequence, (number + 1) * per_sequence))
        chunks.append(
            Chunk(request=request, start=scenario.context, length=scenario.new_tokens, samples=True)
        )
    runner = Runner(decoder, pool)
    return lambda: runner.run(chunks)


def _fill(pool: PagePool) -> None:
    """Every page gets the same random keys and values."""
    format = pool.format
    shape = (PAGE_TOKENS, format.num_kv_heads, format.head_dim)
    k, v = (torch.randn(shape, device=pool.device) for _ in range(2))
    offsets = torch.arange(PAGE_TOKENS, device=pool.device)
    for layer in range(format.num_layers):
        for page in range(pool.num_pages):
            pool.append(layer, k, v, page * PAGE_TOKENS + offsets)


def _reason_to_skip(decoder: Decoder, scenario: Scenario) -> str | None:
    if scenario.session_len > decoder.session_len:
        return f"{scenario.session_len} tokens, the model takes {decoder.session_len}"
    page_format = PageFormat.for_policy(decoder.config, scenario.quant_policy, decoder.dtype)
    step = workspace(
        decoder.config,
        decoder.placement,
        step_tokens=scenario.batch * scenario.new_tokens,
        max_batch_size=scenario.batch,
        session_len=scenario.session_len,
    )
    needed = scenario.pages * page_format.bytes_per_page + step.total
    free = free_memory(decoder.device)
    if needed > free:
        return f"takes {human_bytes(needed)}, {human_bytes(free)} are free"
    return None


def _too_slow(limit: float, left: float) -> str | None:
    """A warm-up and a timed call, at their very best, must fit."""
    if 2 * limit <= left:
        return None
    return (
        f"two calls take {2 * limit:.0f} s at best, {max(left, 0):.0f} s are left: raise --seconds"
    )
