"""Where a decode step's time goes on a GPU: graph, head, sampling, host; random 4-bit weights.

    python benchmarks/decode_step.py FOLDER --json benchmarks/results/decode_step.json

FOLDER needs a config.json alone. `graph` is what the GPU takes for a step to its greedy tokens, and
`drawing` what it takes behind the head where they are drawn with a top-p, over many in a row.
`fill` and `replay` are what the host takes to bring a step's numbers and to launch its graph,
`launch` all that it takes for a step, and `step` is a step as the engine runs them, each launched
before the last one is collected. --kernels names the kernels of one graph, by the time that they
take in all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from machine import save_results

from awqkit_runtime.bench.prepared import RunningAhead, _requests, _steps, follow
from awqkit_runtime.bench.scenarios import Scenario
from awqkit_runtime.bench.subject import Subject, load_subject
from awqkit_runtime.bench.work import pages_of
from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.config import EngineConfig, QuantPolicy
from awqkit_runtime.engine.graph_runner import GraphRunner
from awqkit_runtime.engine.launched_step import sampled_step
from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.sampling_params import SamplingParams

#: (batch, context, quant_policy)
SHAPES: tuple[tuple[int, int, QuantPolicy], ...] = (
    *((batch, 128, 0) for batch in (1, 8, 32, 128, 256)),
    (1, 15000, 0),
    *((16, 8000, policy) for policy in (0, 8, 4)),
)
REPEATS = 50


@dataclass(frozen=True, kw_only=True)
class Row:
    """Milliseconds."""

    batch: int
    context: int
    quant_policy: QuantPolicy
    graph: float
    drawing: float
    fill: float
    replay: float
    launch: float
    step: float


@torch.inference_mode()
def measure(
    subject: Subject, batch: int, context: int, policy: QuantPolicy, *, show_kernels: bool
) -> Row:
    scenario = Scenario(name="", batch=batch, new_tokens=1, context=context, quant_policy=policy)
    decoder = subject.decoder
    page_format = PageFormat.for_policy(decoder.config, policy, decoder.dtype)
    pool = PagePool(page_format, pages_of(scenario), decoder.device)
    runner: Any = subject.runner(pool, policy, max_rows=batch)
    assert isinstance(runner, GraphRunner)
    chunks = _steps(list(_requests(scenario, decoder.config.vocab_size)), scenario, batch)
    ahead = RunningAhead(runner, chunks)
    for _ in range(5):
        ahead()
    steps = [_milliseconds_of(ahead) for _ in range(REPEATS)]
    ((rows, graph),) = runner._greedy_steps.items()
    logits = torch.randn(batch, decoder.config.vocab_size, device=decoder.device)
    drawn = [replace(chunk, request=_drawing(chunk.request)) for chunk in chunks[0]]
    in_flight = runner.launch(chunks[0], None)
    following = follow(chunks[0], in_flight)
    launches = [_host_milliseconds(lambda: runner.launch(following, in_flight)) for _ in range(5)]
    fills = [
        _host_milliseconds(
            lambda: runner._inputs.bring(runner._inputs.plan(rows, following, in_flight))
        )
        for _ in range(5)
    ]
    replays = [_host_milliseconds(graph) for _ in range(5)]
    if show_kernels:
        _show_kernels(graph)
    return Row(
        batch=batch,
        context=context,
        quant_policy=policy,
        graph=_gpu_milliseconds(graph),
        drawing=_gpu_milliseconds(lambda: sampled_step(logits, drawn, dtype=decoder.dtype)),
        fill=min(fills),
        replay=min(replays),
        launch=min(launches),
        step=statistics.median(steps),
    )


def _milliseconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def _host_milliseconds(call: Callable[[], object]) -> float:
    """Behind nothing that the device is still at."""
    torch.cuda.synchronize()
    return _milliseconds_of(call)


def _drawing(request: Request) -> Request:
    return replace(request, params=SamplingParams(temperature=0.8, top_p=0.9))


def _gpu_milliseconds(call: Callable[[], object]) -> float:
    """Of one of many in a row."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    call()
    begin.record()
    for _ in range(REPEATS):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / REPEATS


def _show_kernels(graph: Callable[[], object]) -> None:
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        graph()
        torch.cuda.synchronize()
    averages = profiler.key_averages()
    print(averages.table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config = EngineConfig(device="cuda", model_format="awq")
    start = time.perf_counter()
    subject = load_subject(arguments.folder, config, random_weights=True)
    print(f"Loaded in {time.perf_counter() - start:.1f} s")
    rows = []
    for shape in SHAPES:
        row = measure(subject, *shape, show_kernels=arguments.kernels)
        rows.append(row)
        print(" ".join(f"{key} {value:g}" for key, value in asdict(row).items()), flush=True)
        torch.cuda.empty_cache()
    if arguments.json is not None:
        save_results(arguments.json, rows=[asdict(row) for row in rows])


if __name__ == "__main__":
    main()
