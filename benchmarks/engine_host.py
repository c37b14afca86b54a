"""What the engine itself costs a step: scheduling, answers, text; no model and no device.

    python benchmarks/engine_host.py FOLDER --json benchmarks/results/engine_host.json

FOLDER is a checkpoint's; of it the tokenizer counts alone. A runner that computes nothing gives
every request random tokens. Times are those that the engine's thread has the processor, over many
steps that only decode: of the fastest one, which a busy machine disturbs least, and the median.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from machine import save_results

from awqkit.checkpoint import DecoderConfig
from awqkit.checkpoint.tokenizer import load_tokenizer
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.sampler import SampledToken
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.engine.scheduler import Chunk

BATCHES = (1, 8, 32, 128, 256)
PROMPT = 128
_HEAD_DIM = 16


@dataclass(frozen=True, kw_only=True)
class Row:
    batch: int
    #: An answer may end with one of two texts, as with tools or a chat template.
    stop_texts: int
    fastest_milliseconds: float
    median_milliseconds: float


class NoModel:
    """Says what shape it has, and computes nothing."""

    device = torch.device("cpu")
    dtype = torch.float32
    session_len = 4096

    def __init__(self, vocab_size: int) -> None:
        self.config = DecoderConfig(
            hidden_size=_HEAD_DIM,
            num_layers=1,
            num_heads=1,
            num_kv_heads=1,
            head_dim=_HEAD_DIM,
            intermediate_size=_HEAD_DIM,
            vocab_size=vocab_size,
            max_position_embeddings=self.session_len,
            norm_eps=1e-5,
            dtype="float32",
        )


@dataclass(frozen=True, eq=False)
class RandomStep:
    requests: tuple[Any, ...]
    tokens: list[SampledToken]

    def collect(self) -> list[SampledToken]:
        return self.tokens


class RandomRunner:
    """Tokens that were drawn before; what a step takes here is next to nothing."""

    can_follow: ClassVar[bool] = True

    def __init__(self, decoder: Any, pool: Any) -> None:
        rng = random.Random(0)
        vocab = decoder.config.vocab_size
        self._tokens = [
            SampledToken(token_id=rng.randrange(vocab), logprobs=None) for _ in range(10_007)
        ]
        self._next = 0

    def launch(self, chunks: Sequence[Chunk], previous: Any) -> RandomStep:
        requests = tuple(chunk.request for chunk in chunks if chunk.samples)
        if self._next + len(requests) > len(self._tokens):
            self._next = 0
        start, self._next = self._next, self._next + len(requests)
        return RandomStep(requests, self._tokens[start : self._next])


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(options.folder)
    rows = []
    for stop_texts in (0, 2):
        for batch in BATCHES:
            row = measure(tokenizer, batch, stop_texts, options.steps)
            rows.append(row)
            print(
                f"batch {batch:3}, {stop_texts} stop texts: {row.fastest_milliseconds:.3f} ms, "
                f"median {row.median_milliseconds:.3f}"
            )
    if options.json is not None:
        save_results(options.json, rows=[asdict(row) for row in rows])


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def measure(tokenizer: Any, batch: int, stop_texts: int, steps: int) -> Row:
    engine = new_engine(tokenizer, batch, stop_texts, steps)
    times = []
    for _ in range(steps):
        start = time.thread_time()
        outputs = engine.step()
        times.append(time.thread_time() - start)
        assert len(outputs) == batch
    return Row(
        batch=batch,
        stop_texts=stop_texts,
        fastest_milliseconds=round(1000 * min(times), 4),
        median_milliseconds=round(1000 * statistics.median(times), 4),
    )


def new_engine(tokenizer: Any, batch: int, stop_texts: int, steps: int) -> Engine:
    """With `batch` requests that decode and have `steps` tokens to go."""
    decoder: Any = NoModel(len(tokenizer))
    new_runner: Any = RandomRunner
    config = EngineConfig(
        device="cpu", max_batch_size=batch, max_prefill_tokens=batch * PROMPT, seed=0
    )
    engine = Engine(decoder, tokenizer, config, new_runner=new_runner, run_ahead=True)
    rng = random.Random(1)
    stops = ["<|im_end|>", "\n\nUser:"][:stop_texts]
    params = SamplingParams(max_tokens=steps + 20, stop=stops, seed=0)
    for _ in range(batch):
        engine.add_request([rng.randrange(len(tokenizer)) for _ in range(PROMPT)], params)
    for _ in range(10):
        engine.step()
    return engine


if __name__ == "__main__":
    main()
