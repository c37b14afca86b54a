"""What prompts cost in attention over the pages on a GPU.

    python benchmarks/prompt_attention.py --json benchmarks/results/prompt_attention.json

Heads are those of a 7B model: 32 over 8 key-value heads of 128 elements. Times are of one layer,
from CUDA graphs. first_ms is the time of the very first call of a shape, which may make a kernel
for it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from gpu_timing import Ceilings, measure_ceilings, microseconds
from machine import save_results
from torch import Tensor

from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.kernels.flash_attention import ragged_attention, square_attention
from awqkit_runtime.kernels.page_gather import page_gather_

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
WIDTH = (HEADS + 2 * KV_HEADS) * HEAD_DIM
FORMATS = {"bf16": (16, 16), "int8": (8, 8), "int4": (4, 4)}
#: Sequences and their new tokens.
PROMPTS = ((1, 2048), (4, 2048), (1, 8192))
#: New tokens behind a context.
CHUNKS = ((2048, 2048), (2048, 6144), (512, 30000))
SCALE = HEAD_DIM**-0.5

Row = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with torch.inference_mode():
        ceilings = measure_ceilings()
        print(f"{ceilings.bandwidth / 1e12:.2f} TB/s, {ceilings.bf16 / 1e12:.0f} TFLOP/s")
        rows = []
        for row in chain(prompt_rows(ceilings), chunk_rows(ceilings)):
            print("  ".join(f"{name} {shown(value)}" for name, value in row.items()))
            rows.append(row)
    if arguments.json is not None:
        save_results(arguments.json, rows=rows)


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def prompt_rows(ceilings: Ceilings) -> Iterator[Row]:
    for sequences, length in PROMPTS:
        q, k, v = projections(sequences * length)
        ends = torch.arange(0, sequences * length + 1, length, dtype=torch.int32, device="cuda")
        square = [x.unflatten(0, (sequences, length)) for x in (q, k, v)]
        calls: dict[str, Callable[[], object]] = {
            "square": partial(square_attention, *square, scale=SCALE),
            "ragged": partial(ragged_attention, q, k, v, ends, ends, (length, length), scale=SCALE),
        }
        operations = 2 * sequences * length * length * HEADS * HEAD_DIM
        for name, call in calls.items():
            first = first_milliseconds(call)
            row: Row = {"op": name, "sequences": sequences, "length": length, "first_ms": first}
            yield row | rated(microseconds(call), operations, ceilings)


def chunk_rows(ceilings: Ceilings) -> Iterator[Row]:
    """Prompts behind a context that is gathered from pages."""
    for length, context in CHUNKS:
        total = length + context
        q, _, _ = projections(length)
        ends = [torch.tensor([0, end], dtype=torch.int32, device="cuda") for end in (length, total)]
        operations = 4 * length * (context + length / 2) * HEADS * HEAD_DIM
        for name, bits in FORMATS.items():
            pool = make_pool(bits, -(-total // PAGE_TOKENS))
            ids = torch.randperm(pool.num_pages, device="cuda").int()
            k, v = (torch.empty_like(q[:1, :KV_HEADS]).repeat(total, 1, 1) for _ in range(2))
            gather = microseconds(partial(page_gather_, pool.layer(0), ids, 0, k, v))
            attend = partial(ragged_attention, q, k, v, *ends, (length, total), scale=SCALE)
            row: Row = {"op": "chunk", "format": name, "length": length, "context": context}
            yield row | {"gather_us": gather} | rated(microseconds(attend), operations, ceilings)


def projections(tokens: int) -> list[Tensor]:
    """q, k and v of random tokens as views of one tensor, [tokens, heads, head_dim] each."""
    qkv = torch.randn(tokens, WIDTH, device="cuda").bfloat16().unflatten(1, (-1, HEAD_DIM))
    return list(qkv.split((HEADS, KV_HEADS, KV_HEADS), dim=1))


def make_pool(bits: tuple[int, int], pages: int) -> PagePool:
    """One layer with random numbers everywhere."""
    k_bits, v_bits = bits
    form = PageFormat(
        num_layers=1,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        k_bits=k_bits,
        v_bits=v_bits,
        dtype=torch.bfloat16,
    )
    pool = PagePool(form, pages, "cuda")
    k, v = torch.randn(2, pages * PAGE_TOKENS, KV_HEADS, HEAD_DIM, device="cuda")
    pool.append(0, k, v, torch.arange(len(k), device="cuda"))
    return pool


def rated(us: float, operations: float, ceilings: Ceilings) -> Row:
    rate = operations / us * 1e6
    return {"us": us, "tflop_s": rate / 1e12, "share": rate / ceilings.bf16}


def first_milliseconds(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
