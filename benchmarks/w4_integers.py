"""Builds of w4_prefill.cu that multiply integers, beside what the plan chooses.

    python benchmarks/w4_integers.py [--tokens 16 8 32]

Each number of tokens has processes of its own, and checks are apart from times: what fails or hangs
takes its build along and nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from gpu_timing import microseconds
from kernels import BLOCKS, LINEARS, random_dense
from torch import Tensor

from awqkit_runtime.kernels.cuda.compiler import compile_programs
from awqkit_runtime.kernels.cuda.launch import device_architecture
from awqkit_runtime.kernels.launch_plan import GpuModel, LaunchPlan
from awqkit_runtime.kernels.w4_plan import plan_w4_linear
from awqkit_runtime.kernels.w4_prefill_choice import Choice, clusters_that_fit
from awqkit_runtime.kernels.w4_prefill_plan import plan_choice, plan_prefill
from awqkit_runtime.kernels.w4_prefill_variants import Variant, few_tokens
from awqkit_runtime.kernels.w4_tiled_linear import gpu_model, run_plan
from awqkit_runtime.kernels.w4_tiles import W4Tiles, empty_tiles, unpack_tiles

NAMES, SHAPES = list(LINEARS), list(LINEARS.values())
#: (consumers, producers, row blocks, blocks, split)
BUILDS = (
    *((4, 1, 1, 1, 1), (4, 1, 1, 1, 4), (4, 1, 1, 1, 6)),
    *((4, 2, 1, 1, 1), (4, 2, 1, 1, 4), (4, 2, 1, 1, 6)),
    *((3, 1, 1, 1, 3), (3, 1, 1, 1, 5), (3, 2, 1, 1, 3), (3, 2, 1, 1, 5)),
    *((2, 1, 1, 2, 1), (2, 1, 1, 2, 4), (2, 1, 1, 2, 5)),
    *((2, 1, 2, 1, 1), (2, 2, 2, 1, 1), (2, 2, 2, 1, 4), (2, 2, 2, 1, 6)),
    *((1, 1, 2, 2, 1), (1, 1, 2, 2, 4), (1, 1, 2, 2, 5)),
)
#: 1: nothing converted, 2: no products, 4: no scales, 8: operands made once.
PROBES = (1, 2, 3, 5, 9, 13)
#: Builds of which parts are left out to see what the others take, for gate_up and for down.
PROBED = (((4, 1, 1, 1, 1), (4, 2, 1, 1, 1), (2, 2, 2, 1, 1)), ((4, 2, 1, 1, 6), (3, 2, 1, 1, 5)))
ODD = ((24, 128), (72, 4096), (1000, 1280), (4104, 1152), (264, 1024))
KINDS = ("normal", "one sign", "outliers", "one-signed groups")
LIMIT = 2e-3
Build = tuple[int, int, int, int, int]


def variant_of(tokens: int, build: Build) -> Variant:
    names = ("consumers", "producers", "row_blocks", "blocks", "split")
    numbers = dict(zip(names, build, strict=True))
    return few_tokens(
        inputs="integers", tokens=max(8, tokens), cycles=1, paired_cycles=1, **numbers
    )


def name_of(build: Build) -> str:
    consumers, producers, row_blocks, blocks, split = build
    marks = ("p" if producers == 2 else "") + ("b" if row_blocks == 2 else "")
    return f"{64 * consumers * row_blocks}{marks}{'x2' if blocks == 2 else ''}/{split}"


def plans_of(variant: Variant, m: int, n: int, k: int, gpu: GpuModel) -> Iterable[LaunchPlan]:
    """Whole tiles or split ones, and where it can be tiles shared through memory."""
    groups, tiles = k // 128, variant.tiles(m, n)
    if groups < variant.split:
        return
    fit = clusters_that_fit(variant.split, gpu.multiprocessors)
    workers = variant.blocks * fit
    yield plan_choice(Choice(variant=variant, workers=workers, stream_tiles=0, cycles=0), m, n, k)
    left = tiles % fit
    shared = left + (fit if tiles > fit else 0)
    if variant.split == 1 and variant.blocks == 1 and left and shared * groups >= fit:
        yield plan_choice(
            Choice(variant=variant, workers=fit, stream_tiles=shared, cycles=0), m, n, k
        )


def is_even(plan: LaunchPlan, build: Build, n: int, k: int) -> bool:
    """Whether no multiprocessor has much more to do than with an even share."""
    consumers, _, row_blocks, blocks, split = build
    rows = 64 * consumers * row_blocks
    tiles = -(-n // rows)
    if plan.extra[1]:
        return tiles > 20
    rounds = -(-tiles // clusters_that_fit(split, 132))
    most = rounds * -(-(k // 128) // split) * rows
    slack = 2.4 if blocks == 2 else 1.8
    return most < slack * n * (k // 128) / 132 and (split == 1 or rounds <= 3)


def label(build: Build, plan: LaunchPlan) -> str:
    return name_of(build) + (" shared" if plan.extra[1] else "")


def tiles_of(n: int, k: int, kind: str = "normal") -> W4Tiles:
    tiles = empty_tiles(n, k, torch.device("cuda"))
    tiles.codes.random_(-(2**31), 2**31 - 1)
    scales = (torch.rand(tiles.params.shape, device="cuda") * 0.01).half().view(torch.int16)
    zeros = torch.randint(16, tiles.params.shape, device="cuda", dtype=torch.int32)
    if kind == "one-signed groups":
        zeros = zeros % 2 * 15
    tiles.params.copy_((zeros | 0x4300) << 16 | scales.to(torch.int32))
    return tiles


def inputs_of(m: int, k: int, kind: str) -> Tensor:
    x = random_dense(m, k)
    if kind == "outliers":
        x[:, ::97] *= 1000
    return x.abs() if kind == "one sign" else x


def exact(x: Tensor, weight: W4Tiles) -> Tensor:
    q = unpack_tiles(weight)
    codes = q.codes.double().view(weight.out_features, -1, 128)
    dense = (codes - q.zeros.double().unsqueeze(-1)) * q.scales.double().unsqueeze(-1)
    return x.double() @ dense.view(weight.out_features, -1).T


def error_of(
    plan: LaunchPlan, x: Tensor, weight: W4Tiles, bias: Tensor | None, want: Tensor
) -> float:
    """Of six launches that follow each other; NaN where not all is written or they differ."""
    outs = [torch.full_like(want, torch.nan, dtype=torch.bfloat16) for _ in range(6)]
    for out in outs:
        run_plan(plan, x, weight, bias, out)
    if not all(torch.equal(out, outs[0]) for out in outs):
        return float("nan")
    return float((outs[0].double() - want).norm() / want.norm())


def check(tokens: int, first: int) -> None:
    torch.manual_seed(0)
    gpu = gpu_model(torch.device("cuda", 0))
    cases = []
    for (n, k), kind in itertools.product((*ODD, *SHAPES), KINDS):
        if (n, k) in SHAPES and kind != KINDS[len(cases) % 4]:
            continue
        weight, bias = tiles_of(n, k, kind), random_dense(1, n)[0]
        for m in sorted({1, tokens // 2 + 1, tokens}):
            x = inputs_of(m, k, kind)
            cases.append((n, k, kind, m, weight, bias, x, exact(x, weight) + bias.double()))
    for index, build in enumerate(BUILDS):
        if index < first:
            continue
        print(f"begin {index}", flush=True)
        variant, worst, bad = variant_of(tokens, build), 0.0, []
        for n, k, kind, m, weight, bias, x, want in cases:
            for plan in plans_of(variant, m, n, k, gpu):
                error = error_of(plan, x, weight, bias, want)
                few = 1 + 4 / want.numel() ** 0.5
                if not error < LIMIT * few:
                    bad.append(f"{n}x{k} m {m} {kind} {label(build, plan)}: {error:.1e}")
                worst = max(worst, error / few)
        bad += odd_numbers(variant, gpu)
        print(f"  {tokens} tokens {name_of(build):8} {variant.stages} stages, worst {worst:.2e}")
        print(*(f"    WRONG {text}" for text in bad[:4]), sep="\n", flush=True)
        print(f"good {index}" if not bad else f"bad {index}", flush=True)


def odd_numbers(variant: Variant, gpu: GpuModel) -> list[str]:
    """A token of infinities or not of numbers, or of zeros, is alone with them."""
    n, k, m = 264, 1280, 3
    weight = tiles_of(n, k)
    x = random_dense(m, k)
    x[0, 700], x[1] = float("inf"), 0.0
    plan = next(iter(plans_of(variant, m, n, k, gpu)))
    out = torch.empty(m, n, dtype=torch.bfloat16, device="cuda")
    run_plan(plan, x, weight, None, out)
    right = (
        not bool(out[0].isfinite().any()),
        not bool(out[1].any()),
        bool((out[2].double() - exact(x[2:], weight)[0]).norm() < 0.1),
    )
    return [] if all(right) else [f"odd numbers: {right}"]


def checked(tokens: int) -> list[int]:
    """The builds that pass; a check that dies or hangs goes on with the next build."""
    good, first = [], 0
    while first < len(BUILDS):
        command = [sys.executable, "-u", __file__, "--check", str(tokens), "--first", str(first)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
            output, ending = done.stdout, done.stderr[-600:] if done.returncode else ""
        except subprocess.TimeoutExpired as expired:
            output, ending = (expired.stdout or b"").decode(), "timed out"
        lines = output.splitlines()
        print(*(line for line in lines if line[:1] == " "), ending, sep="\n", flush=True)
        good += [int(line.split()[1]) for line in lines if line.startswith("good")]
        begun = [int(line.split()[1]) for line in lines if line.startswith("begin")]
        if not ending or not begun:
            break
        first = begun[-1] + 1
    return good


class Clock:
    """Times plans over copies of a block's linears."""

    def __init__(self, m: int) -> None:
        self.tiles = [tiles_of(n, k) for _ in range(BLOCKS) for n, k in SHAPES]
        self.x = {k: random_dense(m, k) for _, k in SHAPES}
        self.outs = [random_dense(m, weight.out_features) for weight in self.tiles]

    def us(self, plans: dict[int, LaunchPlan]) -> float:
        def run() -> None:
            for j, (weight, out) in enumerate(zip(self.tiles, self.outs, strict=True)):
                if j % 4 in plans:
                    run_plan(plans[j % 4], self.x[weight.in_features], weight, None, out)

        return microseconds(run) / BLOCKS


def without(plan: LaunchPlan, probe: int) -> LaunchPlan:
    defines = (*plan.program.defines, f"W4_PROBE={probe}")
    return replace(plan, program=replace(plan.program, defines=defines))


def probe(m: int, clock: Clock, gpu: GpuModel) -> None:
    for i, builds in zip((2, 3), PROBED, strict=True):
        for build in builds:
            plan = next(iter(plans_of(variant_of(m, build), m, *SHAPES[i], gpu)))
            us = [clock.us({i: without(plan, number)}) for number in PROBES]
            cells = ", ".join(f"{number}: {t:.2f}" for number, t in zip(PROBES, us, strict=True))
            print(f"  {m} tokens, {NAMES[i]} {name_of(build)}: {cells}", flush=True)


def measure(m: int, good: list[int]) -> None:
    torch.manual_seed(0)
    gpu = gpu_model(torch.device("cuda", 0))
    clock = Clock(m)
    probe(m, clock, gpu)
    kinds: list[dict[str, LaunchPlan]] = []
    for n, k in SHAPES:
        plans = {"now": plan_w4_linear(m, n, k, gpu), "batch": plan_prefill(m, n, k, gpu).plan}
        for index in good:
            build = BUILDS[index]
            for plan in plans_of(variant_of(m, build), m, n, k, gpu):
                if is_even(plan, build, n, k):
                    plans[label(build, plan)] = plan
        kinds.append(plans)
    alone: list[dict[str, float]] = []
    for i, name in enumerate(NAMES):
        times = {kind: clock.us({i: plan}) for kind, plan in kinds[i].items()}
        alone.append(times)
        cells = ", ".join(f"{kind} {us:.2f}" for kind, us in sorted(times.items(), key=_second))
        print(f"  {m} tokens, {name} alone: {cells}", flush=True)
    now = ("now",) * 4
    best = tuple(min(times, key=times.__getitem__) for times in alone)
    seen: dict[tuple[str, ...], float] = {}

    def in_order(mix: tuple[str, ...]) -> float:
        if mix not in seen:
            seen[mix] = clock.us({i: kinds[i][kind] for i, kind in enumerate(mix)})
        return seen[mix]

    limit = time.monotonic() + 9
    for start in (best, now):
        descend(start, kinds, alone, in_order, limit)
        limit += 5
    print(f"  {m} tokens: now {in_order(now):.2f} us a block")
    for _ in range(2):
        for mix in sorted(seen, key=seen.__getitem__)[:6]:
            again = clock.us({i: kinds[i][kind] for i, kind in enumerate(mix)})
            print(f"  {m} tokens: in order {seen[mix]:.2f}, again {again:.2f}: {mix}", flush=True)
        again = clock.us({i: plans["now"] for i, plans in enumerate(kinds)})
        print(f"  {m} tokens: now again {again:.2f}", flush=True)


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def descend(
    mix: tuple[str, ...],
    kinds: list[dict[str, LaunchPlan]],
    alone: list[dict[str, float]],
    in_order: Callable[[tuple[str, ...]], float],
    limit: float,
) -> None:
    """Change one linear's kernel at a time for as long as that helps."""
    while time.monotonic() < limit:
        before = in_order(mix)
        for i in (2, 3, 0, 1):
            some = sorted(kinds[i], key=alone[i].__getitem__)[:9]
            others = [(*mix[:i], kind, *mix[i + 1 :]) for kind in {*some, "now", mix[i]}]
            mix = min(others, key=in_order)
        if in_order(mix) >= before:
            return


def compile_all(tokens: list[int]) -> None:
    gpu = gpu_model(torch.device("cuda", 0))
    plans = [
        plan
        for m, (n, k) in itertools.product(tokens, SHAPES)
        for plan in (plan_w4_linear(m, n, k, gpu), plan_prefill(m, n, k, gpu).plan)
    ]
    for m, build in itertools.product(tokens, BUILDS):
        plans += plans_of(variant_of(m, build), m, *SHAPES[3], gpu)
    for m, build, number in itertools.product(tokens, sum(PROBED, ()), PROBES):
        some = plans_of(variant_of(m, build), m, *SHAPES[3], gpu)
        plans += (without(plan, number) for plan in some)
    compile_programs({plan.program for plan in plans}, device_architecture(torch.device("cuda", 0)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 8, 32])
    parser.add_argument("--check", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--measure", type=int)
    parser.add_argument("--good", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments.check, arguments.first)
    if arguments.measure:
        return measure(arguments.measure, arguments.good)
    start = time.monotonic()
    compile_all(arguments.tokens)
    print(f"{torch.cuda.get_device_name()}, compiled {time.monotonic() - start:.0f} s", flush=True)
    for tokens in arguments.tokens:
        good = checked(tokens)
        print(f"{tokens} tokens: {len(good)} of {len(BUILDS)} builds are right", flush=True)
        command = [sys.executable, "-u", __file__, "--measure", str(tokens)]
        subprocess.run([*command, "--good", *map(str, good)], timeout=60, check=False)
        print(f"{time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
