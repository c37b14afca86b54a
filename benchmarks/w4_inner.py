"""Builds of w4_prefill.cu whose warpgroups share 64 rows, against those that the plan chooses.

python benchmarks/w4_inner.py --tokens 16 8 32
"""

from __future__ import annotations

import argparse
import itertools

import torch
from gpu_timing import microseconds
from kernels import BLOCKS, LINEARS, random_dense, random_tiles
from torch import Tensor

from awqkit_runtime.kernels.cuda.compiler import compile_programs
from awqkit_runtime.kernels.cuda.launch import device_architecture
from awqkit_runtime.kernels.launch_plan import LaunchPlan
from awqkit_runtime.kernels.w4_plan import plan_w4_linear
from awqkit_runtime.kernels.w4_prefill_choice import Choice
from awqkit_runtime.kernels.w4_prefill_plan import plan_choice
from awqkit_runtime.kernels.w4_prefill_variants import Variant
from awqkit_runtime.kernels.w4_tiled_linear import gpu_model, run_plan
from awqkit_runtime.kernels.w4_tiles import W4Tiles, unpack_tiles

SHAPES = list(LINEARS.values())
#: (out, in) that no tile, group of stages or pair of blocks divides.
ODD = ((72, 4096), (1000, 1280), (4104, 1152), (264, 1024))
SPLITS = (1, 2)


def inner_plan(m: int, n: int, k: int, split: int) -> LaunchPlan:
    tokens = 16 if m <= 16 else 32
    numbers = {"tokens": tokens, "consumers": 4, "inner": 4, "batch": 4, "split": split}
    variant = Variant(**numbers, scale_sums=True, cycles=1)
    return plan_choice(Choice(variant=variant, workers=132, stream_tiles=0, cycles=0), m, n, k)


def error_of(plan: LaunchPlan, x: Tensor, weight: W4Tiles, bias: Tensor | None) -> float:
    """Against FP64; NaN where not all is written."""
    q = unpack_tiles(weight)
    codes = q.codes.double().view(weight.out_features, -1, 128)
    dense = (codes - q.zeros.double().unsqueeze(-1)) * q.scales.double().unsqueeze(-1)
    want = x.double() @ dense.view(weight.out_features, -1).T
    want += 0.0 if bias is None else bias.double()
    out = torch.full_like(want, torch.nan, dtype=torch.bfloat16)
    run_plan(plan, x, weight, bias, out)
    return float((out.double() - want).norm() / want.norm())


def check_odd_shapes() -> None:
    for n, k in ODD:
        weight, bias = random_tiles(n, k), random_dense(1, n)[0]
        for m, split in itertools.product((1, 9, 16, 17, 32), SPLITS):
            error = error_of(inner_plan(m, n, k, split), random_dense(m, k), weight, bias)
            assert error < 2.4e-3, (n, k, m, split, error)
    print("odd shapes are right", flush=True)


def measure(m: int, tiles: list[W4Tiles]) -> None:
    x = {k: random_dense(m, k) for _, k in SHAPES}
    gpu = gpu_model(torch.device("cuda", 0))
    now = [plan_w4_linear(m, n, k, gpu) for n, k in SHAPES]
    outs = [random_dense(m, weight.out_features) for weight in tiles]

    def microseconds_of(plans: dict[int, LaunchPlan]) -> float:
        def run() -> None:
            for j, (weight, out) in enumerate(zip(tiles, outs, strict=True)):
                if j % 4 in plans:
                    run_plan(plans[j % 4], x[weight.in_features], weight, None, out)

        return microseconds(run) / BLOCKS

    base = microseconds_of(dict(enumerate(now)))
    print(f"{m} tokens: now {base:.2f} us a block", flush=True)
    choices = []
    for i, (name, (n, k)) in enumerate(LINEARS.items()):
        choices.append([("now", now[i])])
        alone = [f"now {microseconds_of({i: now[i]}):.2f}"]
        for split in SPLITS:
            plan = inner_plan(m, n, k, split)
            error = error_of(plan, x[k], tiles[i], None)
            alone.append(f"split {split} {microseconds_of({i: plan}):.2f} (error {error:.2e})")
            if name != "gate_up":
                choices[-1].append((f"split {split}", plan))
        print(f"  {name} alone: {', '.join(alone)}", flush=True)
    orders = []
    for mixture in itertools.product(*choices):
        us = microseconds_of({i: plan for i, (_, plan) in enumerate(mixture)})
        orders.append((us, [label for label, _ in mixture]))
    for us, labels in sorted(orders)[:5]:
        print(f"  in order {us:.2f} us a block: {labels}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 8, 32])
    tokens = parser.parse_args().tokens
    torch.manual_seed(0)
    programs = {inner_plan(m, *SHAPES[0], split).program for m in tokens for split in SPLITS}
    compile_programs(programs, device_architecture(torch.device("cuda", 0)))
    check_odd_shapes()
    tiles = [random_tiles(n, k) for _ in range(BLOCKS) for n, k in SHAPES]
    for m in tokens:
        measure(m, tiles)


if __name__ == "__main__":
    main()
