"""Variants of w4_prefill.cu for few tokens, checked against FP64 and timed beside what runs today.

python benchmarks/w4_raised.py alone raised-turns --tokens 32 16 --out DIR
python benchmarks/w4_raised.py order --tokens 32 --out DIR
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from gpu_timing import microseconds
from kernels import BLOCKS, LINEARS, random_dense, random_tiles
from torch import Tensor

from awqkit_runtime.kernels.cuda.compiler import compile_programs
from awqkit_runtime.kernels.cuda.launch import device_architecture
from awqkit_runtime.kernels.launch_plan import LaunchPlan
from awqkit_runtime.kernels.w4_plan import plan_w4_linear
from awqkit_runtime.kernels.w4_prefill_choice import choices_of
from awqkit_runtime.kernels.w4_prefill_plan import plan_choice
from awqkit_runtime.kernels.w4_prefill_variants import Variant
from awqkit_runtime.kernels.w4_tiled_linear import gpu_model, run_plan
from awqkit_runtime.kernels.w4_tiles import W4Tiles, empty_tiles, unpack_tiles

DEVICE = torch.device("cuda", 0)
#: (inputs, flow) by name.
KINDS = {
    "trim": (0, 0, 0, ("W4_TRIM=3",)),
    "late": (0, 0, 0, ("W4_TRIM=11",)),
    "lag2": (0, 1, 2, ("W4_TRIM=3",)),
    "lag4": (0, 1, 4, ("W4_TRIM=3",)),
    "raised": (2, 0, 0, ()),
    "raised-none": (2, 0, 0, ("W4_PROBE=1",)),
    "raised-nosum": (2, 0, 0, ("W4_PROBE=2",)),
}
#: Whose results are wrong: only their times are of interest.
WRONG = ("raised-none", "raised-nosum")
#: (rows, blocks a multiprocessor, split) that each linear may run with.
SHAPES = {
    "qkv": ((128, 2, 4), (192, 1, 3), (256, 1, 4)),
    "o": ((128, 2, 4), (128, 2, 5), (192, 1, 5), (256, 1, 6)),
    "gate_up": ((256, 1, 1), (128, 2, 1)),
    "down": ((128, 2, 4), (128, 2, 5), (192, 1, 5), (256, 1, 6)),
}
ODD = ((8, 1024), (72, 4096), (1000, 1280), (4104, 1152), (264, 1024), (136, 128))
LIMIT = 2e-3


def variant_of(kind: str, tokens: int, rows: int, blocks: int, split: int) -> Variant | None:
    inputs, flow, batch, extra = KINDS[kind]
    consumers = rows // 64
    if tokens == 64 and blocks == 2:
        return None
    if flow == 1 and consumers == 4 and (tokens > 32 or (tokens == 32 and batch == 4)):
        return None
    if flow == 1 and blocks == 2 and tokens == 32 and (batch == 4 or inputs):
        return None
    if flow == 0:
        batch = 2 if (tokens, consumers) in ((64, 4), (48, 2)) else 4
    return Variant(
        tokens=tokens,
        consumers=consumers,
        cycles=900,
        blocks=blocks,
        paired_cycles=900 if blocks > 1 else 0,
        split=split,
        batch=batch,
        scale_sums=True,
        inputs=inputs,
        flow=flow,
        extra=extra,
    )


def plan_of(variant: Variant, m: int, n: int, k: int) -> LaunchPlan | None:
    for choice in choices_of(variant, m, n, k, gpu_model(DEVICE)):
        if not choice.stream_tiles:
            return plan_choice(choice, m, n, k).plan
    return None


def variants_for(kind: str, tokens: int) -> Iterator[tuple[str, str, Variant]]:
    """Linear, label, variant."""
    for name, shapes in SHAPES.items():
        for rows, blocks, split in shapes:
            variant = variant_of(kind, tokens, rows, blocks, split)
            if variant:
                yield name, f"{kind} {rows}r {blocks}/SM k{split}", variant


def dense_of(weight: W4Tiles) -> Tensor:
    q = unpack_tiles(weight)
    codes = q.codes.double().view(weight.out_features, -1, 128)
    dense = (codes - q.zeros.double().unsqueeze(-1)) * q.scales.double().unsqueeze(-1)
    return dense.view(weight.out_features, -1)


def weight_of(n: int, k: int, zero: int | None) -> W4Tiles:
    """With random zero points, or one for all, so that weights have one sign."""
    tiles = empty_tiles(n, k, DEVICE)
    tiles.codes.random_(-(2**31), 2**31 - 1)
    scales = (torch.rand(tiles.params.shape, device=DEVICE) * 0.01).half().view(torch.int16)
    zeros = torch.randint(16, tiles.params.shape, device=DEVICE, dtype=torch.int32)
    zeros = zeros if zero is None else torch.full_like(zeros, zero)
    tiles.params.copy_((zeros | 0x4300) << 16 | scales.to(torch.int32))
    return tiles


def inputs_of(kind: str, m: int, k: int) -> Tensor:
    x = random_dense(m, k)
    if kind == "outliers":
        x[:, ::97] *= 1000
    scale = {"tiny": 1e-6, "large": 1e4}.get(kind, 1.0)
    return (x.abs() if kind == "one sign" else x) * scale


def run(plan: LaunchPlan, x: Tensor, weight: W4Tiles) -> Tensor:
    out = torch.full((x.shape[0], weight.out_features), torch.nan, device=DEVICE).bfloat16()
    run_plan(plan, x, weight, None, out)
    return out


def slack(outputs: int) -> float:
    return 1.0 if outputs >= 10_000 else 1.0 + 4.0 / outputs**0.5


def check(variant: Variant, weights: list[tuple[W4Tiles, Tensor, int | None]]) -> str:
    """A summary of errors; raises where one is too large or two runs differ."""
    worst: dict[str, float] = {}
    for weight, dense, zero in weights:
        k = weight.in_features
        kinds = ("normal", "one sign", "outliers", "tiny", "large") if zero is None else ("normal",)
        for kind, m in itertools.product(kinds, (1, variant.tokens - 7, variant.tokens)):
            plan = plan_of(variant, m, weight.out_features, k)
            if plan is None:
                continue
            x = inputs_of(kind, m, k)
            out, again = run(plan, x, weight), run(plan, x, weight)
            want = x.double() @ dense.T
            error = float((out.double() - want).norm() / want.norm())
            label = kind if zero is None else f"zero {zero}"
            if not error <= LIMIT * slack(out.numel()):
                raise AssertionError((variant, weight.codes.shape, k, m, label, error))
            if not torch.equal(out, again):
                raise AssertionError((variant, k, m, label, "two runs differ"))
            worst[label] = max(worst.get(label, 0), error / slack(out.numel()))
    return ", ".join(f"{label} {error:.2e}" for label, error in worst.items())


def check_infinity(variant: Variant, weight: W4Tiles, dense: Tensor) -> None:
    x = random_dense(variant.tokens, weight.in_features)
    x[3, 5] = torch.inf
    plan = plan_of(variant, *x.shape[:1], weight.out_features, weight.in_features)
    if plan is None:
        return
    out = run(plan, x, weight).double()
    want = x.double() @ dense.T
    others = [i for i in range(x.shape[0]) if i != 3]
    assert not out[3].isfinite().any(), "infinity is lost"
    error = float((out[others] - want[others]).norm() / want[others].norm())
    assert error < LIMIT * slack(out.numel()), ("infinity spreads", error)


class Bench:
    def __init__(self, m: int) -> None:
        self.m = m
        self.tiles = [random_tiles(n, k) for _ in range(BLOCKS) for n, k in LINEARS.values()]
        self.x = {k: random_dense(m, k) for _, k in LINEARS.values()}
        self.outs = [random_dense(m, weight.out_features) for weight in self.tiles]
        gpu = gpu_model(DEVICE)
        self.now = {i: plan_w4_linear(m, *shape, gpu) for i, shape in enumerate(LINEARS.values())}

    def again(self, m: int) -> None:
        """The same weights with another number of tokens."""
        self.m = m
        self.x = {k: random_dense(m, k) for _, k in LINEARS.values()}
        self.outs = [random_dense(m, weight.out_features) for weight in self.tiles]
        gpu = gpu_model(DEVICE)
        self.now = {i: plan_w4_linear(m, *shape, gpu) for i, shape in enumerate(LINEARS.values())}

    def us(self, plans: dict[int, LaunchPlan]) -> float:
        """A block's linears that have a plan, one block after the other."""

        def work() -> None:
            for j, (weight, out) in enumerate(zip(self.tiles, self.outs, strict=True)):
                if j % 4 in plans:
                    run_plan(plans[j % 4], self.x[weight.in_features], weight, None, out)

        return microseconds(work) / BLOCKS


def alone(kind: str, tokens: list[int], out: Path, checked: bool) -> None:
    builds = {m: list(variants_for(kind, m)) for m in tokens}
    distinct = {variant: label for of in builds.values() for _, label, variant in of}
    programs = {plan_of(v, 1, 4096, 4096).program for v in distinct}
    compile_programs(programs, device_architecture(DEVICE))
    print(f"{kind}: compiled {len(programs)}", flush=True)
    weights = []
    for n, k in ODD:
        for zero in (None, 0, 15) if n == 1000 else (None,):
            weight = weight_of(n, k, zero)
            weights.append((weight, dense_of(weight), zero))
    for variant, label in distinct.items():
        if kind in WRONG or not checked:
            continue
        print(f"{variant.tokens} {label}: {check(variant, weights)}", flush=True)
        check_infinity(variant, *weights[2][:2])
    bench, times = None, []
    for m in tokens:
        if bench is None:
            bench = Bench(m)
        else:
            bench.again(m)
        print(f"{m} tokens: now {bench.us(bench.now):.2f} in order", flush=True)
        for i, (name, (n, k)) in enumerate(LINEARS.items()):
            cells = [f"now {bench.us({i: bench.now[i]}):.2f}"]
            for linear, label, variant in builds[m]:
                if linear != name:
                    continue
                plan = plan_of(variant, m, n, k)
                us = bench.us({i: plan})
                cells.append(f"{label.removeprefix(kind)[1:]} {us:.2f}")
                shape = (variant.rows, variant.blocks, variant.split)
                times.append({"m": m, "linear": i, "kind": kind, "shape": shape, "us": us})
            print(f"  {m} {name:8} {' | '.join(cells)}", flush=True)
    if kind not in WRONG:
        (out / f"{kind}.json").write_text(json.dumps(times))


def order(tokens: list[int], out: Path, seconds: float) -> None:
    times = [row for path in sorted(out.glob("*.json")) for row in json.loads(path.read_text())]
    bench = None
    for m in tokens:
        end = time.monotonic() + seconds
        if bench is None:
            bench = Bench(m)
        else:
            bench.again(m)
        choices = []
        for i, (n, k) in enumerate(LINEARS.values()):
            choices.append([("now", bench.now[i])])
            of = [row for row in times if (row["m"], row["linear"]) == (m, i)]
            for row in sorted(of, key=lambda row: row["us"])[:3]:
                variant = variant_of(row["kind"], m, *row["shape"])
                label = f"{row['kind']} {row['shape'][0]}r k{row['shape'][2]}"
                choices[-1].append((label, plan_of(variant, m, n, k)))
        best = [list(range(len(of))) for of in choices]
        found: dict[tuple[int, ...], float] = {}

        def us_of(mixture, bench=bench, choices=choices, found=found) -> float:
            if mixture not in found:
                plans = {i: choices[i][j][1] for i, j in enumerate(mixture)}
                found[mixture] = bench.us(plans)
            return found[mixture]

        current = tuple(1 if len(of) > 1 else 0 for of in best)
        base = us_of((0, 0, 0, 0))
        for _ in range(2):  # Linear by linear, given the others.
            for i in (2, 3, 0, 1):
                tries = [(*current[:i], j, *current[i + 1 :]) for j in best[i]]
                current = min(tries, key=us_of)
        for mixture in itertools.product(*best):
            if time.monotonic() > end:
                break
            us_of(mixture)
        again = bench.us(bench.now)
        print(f"{m} tokens: now {base:.2f}, {again:.2f}; {len(found)} mixtures", flush=True)
        for mixture, us in sorted(found.items(), key=lambda item: item[1])[:6]:
            labels = [choices[i][j][0] for i, j in enumerate(mixture)]
            print(f"  {us:.2f} {labels}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("alone", "order"))
    parser.add_argument("kind", nargs="?", choices=KINDS)
    parser.add_argument("--tokens", type=int, nargs="+", default=[32])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--unchecked", action="store_true")
    parser.add_argument("--seconds", type=float, default=8)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.what == "alone":
        alone(arguments.kind, arguments.tokens, arguments.out, not arguments.unchecked)
    else:
        order(arguments.tokens, arguments.out, arguments.seconds)


if __name__ == "__main__":
    main()
