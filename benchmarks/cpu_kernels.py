"""w4_linear on this processor against the memory's bandwidth and torch's own BF16 linear.

    python benchmarks/cpu_kernels.py --json benchmarks/results/cpu_kernels.json

Each shape's weights are copied until they exceed the caches, and every call takes the next copy,
as the layers of a model do. Two times are given: the fastest call, which a busy machine disturbs
least, and the median; ratios compare fastest with fastest, on the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import save_results
from torch import Tensor

from awqkit.checkpoint.layout import GROUP_SIZE, MAX_CODE
from awqkit.checkpoint.quantized_weight import QuantizedWeight
from awqkit_runtime.kernels import native
from awqkit_runtime.kernels.w4_linear import PackedW4, pack_w4, w4_linear

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
#: (out_features, in_features) of a 7B model's four fused linears, and of a demo-sized one.
SHAPES_7B = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
SHAPES_SMALL = ((256, 256), (512, 256), (256, 768), (1536, 256))
BEYOND_CACHES = 256 * 2**20
SMALLEST_TOTAL = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class Row:
    out_features: int
    in_features: int
    tokens: int
    microseconds: float
    median_microseconds: float
    gb_per_s: float
    gflop_per_s: float
    torch_bf16_microseconds: float
    times_faster_than_torch: float


def main() -> None:
    options = parse_options()
    print(f"{native.cpu_isa()}, {torch.get_num_threads()} threads")
    rows: list[Row] = []
    bandwidth = 0.0
    for out_features, in_features in (*SHAPES_7B, *SHAPES_SMALL):
        bandwidth = max(bandwidth, read_bandwidth(options.seconds))
        for row in measure_shape(out_features, in_features, options):
            rows.append(row)
            print(
                f"{out_features:6} x {in_features:5}, {row.tokens:3} tokens: "
                f"{row.microseconds:9.1f} us, {row.gb_per_s:5.1f} GB/s, "
                f"{row.gflop_per_s:6.1f} GFLOP/s, "
                f"{row.times_faster_than_torch:5.2f} times as fast as torch's BF16",
                flush=True,
            )
    print(f"The memory gives {bandwidth:.1f} GB/s; at one token w4_linear takes of that")
    for row in rows:
        if row.tokens == 1 and (row.out_features, row.in_features) in SHAPES_7B:
            share = row.gb_per_s / bandwidth
            print(f"{row.out_features:6} x {row.in_features:5}: {share:.0%}")
    if options.json:
        save_results(
            options.json,
            isa=native.cpu_isa(),
            dtype="bfloat16",
            read_bandwidth_gb_per_s=bandwidth,
            rows=[asdict(row) for row in rows],
        )


def measure_shape(
    out_features: int, in_features: int, options: argparse.Namespace
) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    weight = random_weight(out_features, in_features, generator)
    packed = copies_of(pack_w4(weight), out_features * in_features)
    dense = copies_of(weight.dequantize(torch.bfloat16), out_features * in_features)
    next_packed, next_dense = cycle(packed), cycle(dense)
    for tokens in options.tokens:
        x = torch.randn(tokens, in_features, generator=generator).bfloat16()
        ours, median = timed(lambda x=x: w4_linear(x, next(next_packed)), options.seconds)
        theirs, _ = timed(lambda x=x: F.linear(x, next(next_dense)), options.seconds)
        yield Row(
            out_features=out_features,
            in_features=in_features,
            tokens=tokens,
            microseconds=ours * 1e6,
            median_microseconds=median * 1e6,
            gb_per_s=packed[0].nbytes / ours / 1e9,
            gflop_per_s=2 * tokens * out_features * in_features / ours / 1e9,
            torch_bf16_microseconds=theirs * 1e6,
            times_faster_than_torch=theirs / ours,
        )


def random_weight(
    out_features: int, in_features: int, generator: torch.Generator
) -> QuantizedWeight:
    groups = (out_features, in_features // GROUP_SIZE)
    return QuantizedWeight(
        codes=torch.randint(
            MAX_CODE + 1, (out_features, in_features), generator=generator, dtype=torch.uint8
        ),
        scales=(0.001 + 0.01 * torch.rand(groups, generator=generator)).half(),
        zeros=torch.randint(MAX_CODE + 1, groups, generator=generator, dtype=torch.uint8),
    )


def copies_of(weight: PackedW4 | Tensor, elements: int) -> list:
    """Copies that together exceed the caches; a small layer's model does not, nor do these."""
    total = BEYOND_CACHES if elements > SMALLEST_TOTAL else SMALLEST_TOTAL
    count = max(1, total // weight.nbytes)
    if isinstance(weight, Tensor):
        return [weight.clone() for _ in range(count)]
    return [
        replace(weight, codes=weight.codes.clone(), group_params=weight.group_params.clone())
        for _ in range(count)
    ]


def timed(call: Callable[[], object], seconds: float) -> tuple[float, float]:
    """The fastest and the median time of a call, in seconds."""
    call()
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times), statistics.median(times)


def read_bandwidth(seconds: float) -> float:
    """GB/s of a sum over more memory than the caches hold, by all threads."""
    numbers = torch.ones(2 * BEYOND_CACHES // 8, dtype=torch.int64)
    fastest, _ = timed(numbers.sum, 5 * seconds)
    return numbers.nbytes / fastest / 1e9


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--seconds", type=float, default=0.4, help="per figure")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
