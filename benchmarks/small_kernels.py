"""What the kernels between the linears cost in a chain, beside launches that do nothing.

    python benchmarks/small_kernels.py --json benchmarks/results/small_kernels.json

Shapes are those of a 7B model: 4096 wide, 14336 inside the feed-forward layer, 32 heads of 128
over 8 key-value heads. Times are of one launch out of a CUDA graph of many, each of which waits for
the one before it. `empty` only waits and ends; `empty, apart` is not even launched before its
predecessor has ended. What a kernel takes beyond `empty` is its own. What few tokens need lies in
L2, as what the kernel before has just written does; in a model the weights of norms do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from gpu_timing import measure_ceilings, microseconds
from machine import save_results
from prompt_attention import FORMATS, HEAD_DIM, HEADS, WIDTH, make_pool
from torch import Tensor

from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.page_format import PAGE_TOKENS
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.kernels import silu_mul as gate
from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.rms_norm import add_rms_norm
from awqkit_runtime.kernels.rotary_append import rotary_append_

TOKENS = (1, 8, 16, 32, 256, 2048, 8192)
HIDDEN, INTERMEDIATE = 4096, 14336
BF16_BYTES = 2
#: Launches of one graph, so that a graph's own start does not count.
CALLS = 50


@dataclass(frozen=True, kw_only=True)
class Work:
    """moved: bytes that must be read and written."""

    name: str
    tokens: int
    moved: int
    call: Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows: list[dict[str, object]] = []
    with torch.inference_mode():
        bandwidth = measure_ceilings().bandwidth
        print(f"{bandwidth / 1e12:.2f} TB/s\n{'op':22} tokens       µs     GB/s    share")
        for work in all_work():
            us = microseconds(partial(repeat, work.call)) / CALLS
            rate = work.moved / us * 1e6
            row = {"op": work.name, "tokens": work.tokens, "us": us, "gb_s": rate / 1e9}
            row["share"] = rate / bandwidth
            print(f"{work.name:22} {work.tokens:6} {us:8.2f} {rate / 1e9:8.0f} {row['share']:8.3f}")
            rows.append(row)
    if arguments.json is not None:
        save_results(arguments.json, rows=rows)


def repeat(call: Callable[[], object]) -> None:
    for _ in range(CALLS):
        call()


def all_work() -> Iterator[Work]:
    for tokens in TOKENS:
        for overlap in (True, False):
            name = "empty" if overlap else "empty, apart"
            yield Work(name=name, tokens=tokens, moved=0, call=empty_call(tokens, overlap))
        yield norm_work(tokens)
        yield gate_work(tokens)
        yield from append_work(tokens)


def empty_call(tokens: int, overlap: bool) -> Callable[[], None]:
    """The gate of rows without numbers: its threads wait and end."""
    nothing = torch.empty(8, device="cuda", dtype=torch.bfloat16)
    launch = kernel(gate.PROGRAM, "silu_mul", nothing.device)
    shape = LaunchShape(grid=(tokens, 1, 1), block=(128, 1, 1), overlap=overlap)
    return partial(launch.launch, shape, (nothing, nothing, 0))


def norm_work(tokens: int) -> Work:
    x, delta, weight = random(tokens, HIDDEN), random(tokens, HIDDEN), random(HIDDEN)
    return Work(
        name="add_rms_norm",
        tokens=tokens,
        moved=4 * BF16_BYTES * tokens * HIDDEN,
        call=partial(add_rms_norm, x, delta, weight, 1e-5),
    )


def gate_work(tokens: int) -> Work:
    return Work(
        name="silu_mul",
        tokens=tokens,
        moved=3 * BF16_BYTES * tokens * INTERMEDIATE,
        call=partial(gate.silu_mul, random(tokens, 2 * INTERMEDIATE)),
    )


def append_work(tokens: int) -> Iterator[Work]:
    kinds = [(name, PLAIN_FRAME) for name in FORMATS] + [("int4", KeyFrame(rotated=True))]
    for name, frame in kinds:
        pool = make_pool(FORMATS[name], -(-tokens // PAGE_TOKENS))
        # Reads q, k and v and writes q and k, and the pages.
        values = WIDTH - (HEADS + pool.format.num_kv_heads) * HEAD_DIM
        numbers = 2 * WIDTH - values
        yield Work(
            name=f"append {name}" + (" rotated" if frame.rotated else ""),
            tokens=tokens,
            moved=tokens * (BF16_BYTES * numbers + pool.format.bytes_per_token),
            call=append_call(pool, tokens, frame),
        )


def append_call(pool: PagePool, count: int, frame: KeyFrame) -> Callable[[], None]:
    qkv = torch.randn(count, WIDTH, device="cuda").bfloat16()
    angles = torch.rand(count, HEAD_DIM // 2, device="cuda").repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    slots = torch.arange(count, device="cuda")

    def call() -> None:
        rotary_append_(
            *(qkv, cos, sin, pool.layer(0), slots),
            query_heads=HEADS,
            norms=None,
            frame=frame.layer(0),
        )

    return call


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


if __name__ == "__main__":
    main()
