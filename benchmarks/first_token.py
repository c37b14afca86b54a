"""Where the time to a model's first token goes, in this process: as `awqkit-runtime generate`.

    python benchmarks/first_token.py FOLDER [--quant-policy N] [--started SECONDS]

Prints one JSON object of seconds; parts that run beside each other overlap. `started` is when the
process was started, by the clock of time.time(), so that `interpreter` counts it from there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable
from typing import Any

BEGIN = time.time()
#: What load_engine calls, as it names them, and the name of each part in the output.
PARTS = {
    "awqkit_runtime.engine.loading": {
        "open_checkpoint": "headers",
        "plan_engine": "device_and_plan",
        "read_tokenizer": "tokenizer",
        "read_model_text": "stop_tokens",
        "load_decoder": "weights",
        "key_frame_for": "key_frame",
        "Engine": "cache_and_memory",
    },
    "awqkit_runtime.models.loader": {"ready_placement": "kernels"},
    "awqkit_runtime.models.weight_reader": {"read_outer": "embedding_and_head"},
    "awqkit_runtime.engine.warm_up": {"make_libraries": "libraries"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--quant-policy", default="0")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--started", type=float, default=BEGIN)
    arguments = parser.parse_args()
    seconds: dict[str, float] = {"interpreter": BEGIN - arguments.started}
    begin = time.time()
    importlib.import_module("awqkit_runtime.cli")
    importlib.import_module("awqkit_runtime.cuda_start").start_cuda(arguments.device)
    llm_module = importlib.import_module("awqkit_runtime.llm")
    seconds["imports"] = time.time() - begin
    for module, names in PARTS.items():
        for name, part in names.items():
            time_calls(importlib.import_module(module), name, part, seconds)
    begin = time.time()
    llm = llm_module.LLM(
        arguments.folder, device=arguments.device, quant_policy=arguments.quant_policy
    )
    seconds["load"] = time.time() - begin
    begin = time.time()
    next(llm.stream_outputs(list(range(3, 19)), llm_module.SamplingParams(max_tokens=2)))
    seconds["first_token"] = time.time() - begin
    seconds["all"] = time.time() - arguments.started
    print(json.dumps({name: round(value, 3) for name, value in seconds.items()}))


def time_calls(module: Any, name: str, part: str, seconds: dict[str, float]) -> None:
    """Adds what calls of the module's function take to the part."""
    call: Callable[..., Any] = getattr(module, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = time.time()
        try:
            return call(*args, **kwargs)
        finally:
            seconds[part] = seconds.get(part, 0.0) + time.time() - begin

    setattr(module, name, timed)


if __name__ == "__main__":
    main()
