"""What `--deterministic` costs: prompts and steps of an engine with it and without.

    python benchmarks/deterministic.py FOLDER --json benchmarks/results/deterministic.json

FOLDER needs a config.json alone: weights are random, of 4 bits. `prompts` is from the first request
to the first token of the last one, `step` what each further token of all takes, the host's work
included.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from machine import save_results

from awqkit_runtime.bench.subject import Subject, load_subject
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.sampling_params import SamplingParams

#: (sequences, tokens of each prompt)
SHAPES = ((1, 128), (1, 2048), (16, 128), (64, 128))
TOKENS = 48


@dataclass(frozen=True, kw_only=True)
class Row:
    """Milliseconds."""

    batch: int
    prompt_tokens: int
    deterministic: bool
    prompts: float
    step: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    longest = TOKENS + max(prompt for _, prompt in SHAPES)
    subject = load_subject(
        options.folder, _config(deterministic=False), random_weights=True, longest=longest
    )
    rows = []
    for deterministic in (False, True):
        for batch, prompt_tokens in SHAPES:
            measure(subject, batch, prompt_tokens, deterministic=deterministic)  # To warm up.
            rows.append(measure(subject, batch, prompt_tokens, deterministic=deterministic))
            print(rows[-1])
    if options.json is not None:
        save_results(options.json, rows=[asdict(row) for row in rows])


def measure(subject: Subject, batch: int, prompt_tokens: int, *, deterministic: bool) -> Row:
    engine = subject.engine(_config(deterministic=deterministic))
    rng, vocab = random.Random(0), subject.decoder.config.vocab_size
    for _ in range(batch):
        prompt = [rng.randrange(vocab) for _ in range(prompt_tokens)]
        engine.add_request(prompt, SamplingParams(max_tokens=TOKENS, temperature=0.0))
    begun, answered = time.perf_counter(), set[int]()
    while len(answered) < batch:
        answered |= {output.request_id for output in engine.step()}
    prompts = time.perf_counter() - begun
    steps = []
    while engine.has_unfinished():
        begun = time.perf_counter()
        engine.step()
        steps.append(time.perf_counter() - begun)
    return Row(
        batch=batch,
        prompt_tokens=prompt_tokens,
        deterministic=deterministic,
        prompts=1000 * prompts,
        step=1000 * statistics.median(steps),
    )


def _config(*, deterministic: bool) -> EngineConfig:
    return EngineConfig(
        model_format="awq",
        deterministic=deterministic,
        max_batch_size=max(batch for batch, _ in SHAPES),
        enable_prefix_caching=False,
        cache_max_entry_count="4GiB",
    )


if __name__ == "__main__":
    main()
