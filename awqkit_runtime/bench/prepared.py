"""A scenario made ready: sequences with random tokens over a cache of random keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from awqkit_runtime.bench.scenarios import Scenario
from awqkit_runtime.bench.subject import Subject
from awqkit_runtime.bench.work import pages_of
from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine.launched_step import LaunchedStep, StepLauncher, launcher
from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.sampler import SampledToken
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.engine.scheduler import Chunk


def prepare_work(
    subject: Subject, scenario: Scenario, step_tokens: int
) -> Callable[[], list[SampledToken]]:
    """A call that computes the scenario's new tokens and gives the next one of each sequence.

    It runs and samples, in steps of at most step_tokens new tokens or one of every sequence, as
    the engine does: where the runner can follow, on a GPU, each step is launched before the one in
    front of it is collected, so a call gives what the call before it launched.
    """
    decoder = subject.decoder
    page_format = PageFormat.for_policy(decoder.config, scenario.quant_policy, decoder.dtype)
    pool = PagePool(page_format, pages_of(scenario), decoder.device)
    requests = list(_requests(scenario, decoder.config.vocab_size))
    steps = _steps(requests, scenario, max(step_tokens, scenario.batch))
    steps_of = launcher(subject.runner(pool, scenario.quant_policy, max_rows=scenario.batch))
    if decoder.device.type == "cuda" and steps_of.can_follow:
        ahead = RunningAhead(steps_of, steps)
        ahead()  # Loads kernels and makes the graphs.
        return ahead
    return OneByOne(steps_of, steps)


class OneByOne:
    """Each step is collected before the next one is launched."""

    def __init__(self, launching: StepLauncher, steps: Sequence[Sequence[Chunk]]) -> None:
        self._launching = launching
        self._steps = steps

    def __call__(self) -> list[SampledToken]:
        return [
            token for step in self._steps for token in self._launching.launch(step, None).collect()
        ]


class RunningAhead:
    """Each step is launched before the one in front of it is collected, across calls too."""

    def __init__(self, launching: StepLauncher, steps: Sequence[Sequence[Chunk]]) -> None:
        self._launching = launching
        self._steps = steps
        self._in_flight: LaunchedStep | None = None

    def __call__(self) -> list[SampledToken]:
        found: list[SampledToken] = []
        for chunks in self._steps:
            ahead = self._launching.launch(follow(chunks, self._in_flight), self._in_flight)
            if self._in_flight is not None:
                found += self._in_flight.collect()
            self._in_flight = ahead
        return found


def follow(chunks: Sequence[Chunk], in_flight: LaunchedStep | None) -> list[Chunk]:
    """Decodes take the token that the step in flight samples for their sequence."""
    sampled = set() if in_flight is None else {one.request_id for one in in_flight.requests}
    return [
        replace(chunk, follows=chunk.length == 1 and chunk.request.request_id in sampled)
        for chunk in chunks
    ]


def _requests(scenario: Scenario, vocab_size: int) -> Iterator[Request]:
    generator = torch.Generator().manual_seed(0)
    per_sequence = pages_for(scenario.session_len)
    for number in range(scenario.batch):
        tokens = torch.randint(vocab_size, (scenario.session_len,), generator=generator)
        request = Request(
            request_id=number,
            prompt_token_ids=tuple(tokens.tolist()),
            params=SamplingParams(),
            seed=0,
            stop_token_ids=frozenset(),
            max_output=1,
        )
        request.pages = list(range(number * per_sequence, (number + 1) * per_sequence))
        yield request


def _steps(requests: Sequence[Request], scenario: Scenario, step_tokens: int) -> list[list[Chunk]]:
    """Chunks of all sequences in order, as the scheduler fills steps with them."""
    steps: list[list[Chunk]] = [[]]
    room = step_tokens
    for request in requests:
        start = scenario.context
        while start < scenario.session_len:
            if room == 0:
                steps.append([])
                room = step_tokens
            length = min(room, scenario.session_len - start)
            ends = start + length == scenario.session_len
            steps[-1].append(Chunk(request=request, start=start, length=length, samples=ends))
            start, room = start + length, room - length
    return steps
