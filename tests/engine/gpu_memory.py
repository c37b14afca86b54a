"""What a GPU holds of an engine with random 4-bit weights, beside its plan; prints both as JSON.

Run as `python -m tests.engine.gpu_memory CONFIG_FOLDER CACHE [deterministic]`, in a process of its
own: what other work left on the device would count as the engine's.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import torch

from awqkit_runtime.bench.random_weights import random_decoder
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.loading import free_as_planned
from awqkit_runtime.engine.memory import free_memory
from awqkit_runtime.engine.model_text import NoText
from awqkit_runtime.engine.plan import plan_memory
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.engine.warm_up import libraries_made_meanwhile
from awqkit_runtime.model_size import read_model_size
from awqkit_runtime.models.loader import ready_placement

#: Tokens of the first prompts: together far more than one step takes.
LONG = 9000


def main(folder: str, cache: str, *kind: str) -> None:
    device = torch.device("cuda", 0)
    config = EngineConfig(
        device=device,
        cache_max_entry_count=cache,
        quant_policy=8,
        seed=0,
        deterministic="deterministic" in kind,
    )
    size = read_model_size(folder, "awq")
    memory = free_memory(device)
    placement = ready_placement(size.config, device, "auto")
    weights = size.weights(placement)
    plan = plan_memory(
        size.config, weights=weights, memory=memory, engine=config, placement=placement
    )
    with libraries_made_meanwhile(placement, size.config.head_dim):
        decoder = random_decoder(size, placement)
    loaded = memory - free_memory(device)
    engine = Engine(decoder, NoText(), config, free_bytes=free_as_planned(plan, device))
    ready = memory - torch.cuda.mem_get_info(device)[0]
    serve(engine, size.config.vocab_size)
    used = memory - torch.cuda.mem_get_info(device)[0]
    planned = plan.memory - plan.left
    figures = asdict(plan) | {"left": plan.left, "planned": planned}
    print(json.dumps(figures | {"loaded": loaded, "ready": ready, "used": used}, default=str))


def serve(engine: Engine, vocab: int) -> None:
    """Steps as large as they come: prompts of the full width, then all sequences at once."""
    greedy = SamplingParams(max_tokens=4)
    drawn = SamplingParams(
        temperature=0.9, top_p=0.9, repetition_penalty=1.1, logprobs=5, max_tokens=4
    )
    for number in range(2):
        engine.add_request([(7 * n + number) % vocab for n in range(LONG)], greedy)
    while engine.has_unfinished():
        engine.step()
    for number in range(engine.max_batch_size):
        engine.add_request(
            [(n * number) % vocab for n in range(1, 16)], (greedy, drawn)[number % 2]
        )
    while engine.has_unfinished():
        engine.step()


if __name__ == "__main__":
    main(*sys.argv[1:])
