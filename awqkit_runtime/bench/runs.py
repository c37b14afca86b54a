"""Runs scenarios with the engine's own parts, within the memory and the time that there is."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch

from awqkit_runtime.bench.machine import multiply_rate, read_bandwidth
from awqkit_runtime.bench.prepared import prepare_work
from awqkit_runtime.bench.scenarios import Scenario
from awqkit_runtime.bench.subject import Subject
from awqkit_runtime.bench.timing import time_steps
from awqkit_runtime.bench.work import Work, pages_of, work_of
from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.memory import free_memory, part_of_memory
from awqkit_runtime.engine.step_memory import step_memory
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
    """Of the decoder's device, multiplying in the faster of its activations' type and BF16."""
    dtypes = {decoder.placement.activation_dtype, torch.bfloat16}
    return Speed(
        bandwidth=read_bandwidth(decoder.device),
        multiply_rate=max(multiply_rate(decoder.device, dtype) for dtype in dtypes),
    )


def run_scenarios(
    subject: Subject,
    scenarios: Sequence[Scenario],
    speed: Speed,
    *,
    seconds: float,
    step_tokens: int,
) -> Iterator[Result | Skipped]:
    """Yield what came of each scenario, as it comes; they share `seconds` evenly.

    step_tokens: new tokens of one step; prompts that are longer together take several. Where
    ranks share the model, limits are those of a rank.
    """
    decoder = subject.decoder
    deadline = time.perf_counter() + seconds
    for index, scenario in enumerate(scenarios):
        left = deadline - time.perf_counter()
        if decoder.device.type == "cuda":
            gc.collect()  # The last scenario's cache is gone before the next one asks for room.
        work = work_of(scenario, decoder.config, subject.bits_of, decoder.placement)
        limit, limited_by = speed.limit(work)
        reason = _reason_to_skip(subject, scenario, step_tokens) or _too_slow(limit, left)
        if reason:
            yield Skipped(scenario=scenario, reason=reason)
            continue
        share = left / (len(scenarios) - index)
        times = _time(subject, scenario, step_tokens, seconds=share)
        yield Result(
            scenario=scenario,
            seconds=median(times),
            calls=len(times),
            work=work,
            limit=limit,
            limited_by=limited_by,
        )


def _time(subject: Subject, scenario: Scenario, step_tokens: int, *, seconds: float) -> list[float]:
    """Seconds of each call."""
    return time_steps(prepare_work(subject, scenario, step_tokens), seconds=seconds)


def _reason_to_skip(subject: Subject, scenario: Scenario, step_tokens: int) -> str | None:
    decoder = subject.decoder
    if scenario.session_len > decoder.session_len:
        return f"{scenario.session_len} tokens, the model takes {decoder.session_len}"
    page_format = PageFormat.for_policy(decoder.config, scenario.quant_policy, decoder.dtype)
    steps = step_memory(
        decoder.config,
        decoder.placement,
        EngineConfig(
            quant_policy=scenario.quant_policy,
            max_batch_size=scenario.batch,
            max_prefill_tokens=max(step_tokens, scenario.batch),
            tp=subject.ranks,
        ),
        session_len=scenario.session_len,
    )
    needed = pages_of(scenario) * page_format.bytes_per_page + steps.total
    free = part_of_memory(free_memory(decoder.device), decoder.device, subject.ranks)
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
