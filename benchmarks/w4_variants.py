"""Every candidate build of the wgmma kernel for few tokens: checked, timed and ranked.

    python benchmarks/w4_variants.py --json results.json

Builds run in a child process that is started again past whatever kills it, so that one bad build
costs no more than its own figures. Times are of one CUDA graph over weights rotated past L2.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_timing import microseconds
from torch import Tensor

from awqkit_runtime.kernels.cuda.compiler import compile_programs
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.launch_plan import Boxes, GpuModel, LaunchPlan, ceil_div
from awqkit_runtime.kernels.w4_decode_plan import DecodeInstance

LINEARS = {
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
}
TOKENS = (1, 8, 16, 32, 48, 64)
ODD = ((8, 128), (136, 384), (1000, 256), (4104, 1152), (72, 4096))
LIMIT = 3.2e-3
BEYOND_L2 = 200 * 2**20
LAUNCHES = 48
SILENCE_S, TOTAL_S = 20.0, 75.0


@dataclass(frozen=True, kw_only=True)
class Build:
    """One set of macros of w4_prefill.cu."""

    tokens: int
    consumers: int
    batch: int = 4
    scale_sums: int = 0
    slices: int = 1
    subnormal: int = 0
    turns: int = 0
    direct: int = 0
    bare: int = 0
    blocks: int = 1
    split: int = 1
    cluster: int = 1
    row_blocks: int = 1
    mma_sync: int = 0
    fetched: int = 0
    tiles: int = 0

    @property
    def row_tiles(self) -> int:
        return self.tiles or 4 * self.consumers * self.row_blocks

    @property
    def rows(self) -> int:
        return 16 * self.row_tiles

    @property
    def sum_slots(self) -> int:
        """Sums that the threads of a block hold."""
        return 64 * self.consumers * self.row_blocks * self.tokens

    @property
    def _store_tokens(self) -> int:
        narrow = self.tokens % 32 or self.tokens * self.consumers < 32 * self.split
        return 16 if narrow else 32

    @property
    def _sum_bytes(self) -> int:
        if self.split == 1:
            return 0
        parts = self.consumers * self.row_blocks * self.tokens // self._store_tokens
        return self.split * ceil_div(parts, self.split) * 256 * self._store_tokens

    @property
    def _stage_bytes(self) -> int:
        codes = self.slices * (128 * (self.fetched or self.tokens) + 512 * self.row_tiles)
        return codes + ceil_div(64 * self.row_tiles, 128) * 128

    @property
    def _fixed_bytes(self) -> int:
        barriers = 8 * self.consumers
        return 1024 + barriers + 256 * self._store_tokens * self.consumers + self._sum_bytes

    @property
    def stages(self) -> int:
        room = 228 * 1024 // self.blocks - 1024 - self._fixed_bytes
        return min(16, room // (self._stage_bytes + 16))

    @property
    def shared_bytes(self) -> int:
        return self._fixed_bytes + self.stages * (self._stage_bytes + 16)

    @property
    def program(self) -> Program:
        numbers = {
            "W4_TOKENS": self.tokens,
            "W4_CONSUMERS": self.consumers,
            "W4_CLUSTER": self.cluster,
            "W4_SPLIT": self.split,
            "W4_STAGES": self.stages,
            "W4_BATCH": self.batch,
            "W4_SCALE_SUMS": self.scale_sums,
            "W4_SLICES": self.slices,
            "W4_SUBNORMAL": self.subnormal,
            "W4_TURNS": self.turns,
            "W4_DIRECT": self.direct,
            "W4_BARE": self.bare,
            "W4_BLOCKS": self.blocks,
            "W4_ROW_BLOCKS": self.row_blocks,
            "W4_ROW_TILES": self.row_tiles,
            "W4_MMA_SYNC": self.mma_sync,
            "W4_FETCHED": self.fetched or self.tokens,
        }
        return Program(
            stem="w4_prefill", defines=tuple(f"{name}={value}" for name, value in numbers.items())
        )

    @property
    def label(self) -> str:
        parts = [f"{self.fetched or self.tokens}x{self.rows}"]
        if self.mma_sync:
            parts.append("warps")
        else:
            parts.append(f"{'f' if self.scale_sums else ''}b{self.batch}")
        parts += ["group"] * (self.slices == 2) + ["early"] * self.turns
        parts += [f"sub{self.subnormal}"] * (self.subnormal > 0)
        parts += ["direct"] * self.direct + ["BARE"] * self.bare
        parts += [f"{self.blocks}/SM"] * (self.blocks > 1) + [f"split{self.split}"] * (
            self.split > 1
        )
        parts += ["multicast"] * (self.cluster == 2) + ["rb2"] * (self.row_blocks == 2)
        return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Mode:
    """share: tiles of the last rounds are cut along K. per_sm: blocks of one multiprocessor."""

    share: bool
    per_sm: int

    @property
    def label(self) -> str:
        return ("share" if self.share else "whole") + str(self.per_sm)


@dataclass(frozen=True, kw_only=True)
class DecodeBuild:
    """One set of macros of w4_decode.cu. share: blocks that fetch x once for all of them."""

    tokens: int
    warps: int
    share: int
    depth: int
    chunk: int = 2
    blocks: int = 1
    bare: int = 0

    @property
    def program(self) -> Program:
        numbers = {
            "W4_NT": self.tokens // 8,
            "W4_WARPS": self.warps,
            "W4_SHARE": self.share,
            "W4_CHUNK": self.chunk,
            "W4_DEPTH": self.depth,
            "W4_BLOCKS": self.blocks,
        }
        return Program(
            stem="w4_decode", defines=tuple(f"{name}={value}" for name, value in numbers.items())
        )

    @property
    def label(self) -> str:
        shape = f"{self.warps}w chunk{self.chunk} depth{self.depth}"
        return f"decode{self.tokens} {shape} {self.blocks}/SM share{self.share}"

    def plan(self, m: int, n: int, k: int, gpu: GpuModel) -> LaunchPlan | None:
        instance = DecodeInstance(
            tokens=self.tokens,
            depth=self.depth,
            blocks=self.blocks,
            warps=self.warps,
            chunk=self.chunk,
        )
        shared_bytes = instance.shared_bytes(m, k)
        if m > self.tokens or gpu.blocks_that_fit(shared_bytes) < self.blocks:
            return None
        blocks = min(gpu.multiprocessors * self.blocks, ceil_div(n, 16)) // self.share * self.share
        if blocks == 0:
            return None
        return LaunchPlan(
            kernel="decode",
            program=self.program,
            entry="w4_decode_kernel",
            shape=LaunchShape(
                grid=(blocks, 1, 1),
                block=(32 * (self.warps + 2), 1, 1),
                shared_bytes=shared_bytes,
                cluster=self.share,
                overlap=True,
            ),
            operands=("codes", "params", "x", "bias", "y"),
            extra=(0,),
        )


#: wgmma: a group a stage, its scales on the sums, subnormal codes.
NEW: dict[str, Any] = {"scale_sums": 1, "slices": 2, "turns": 1, "subnormal": 1}
#: The same with every warp by itself, and two row tiles each.
WARPS: dict[str, Any] = {"scale_sums": 1, "slices": 2, "subnormal": 1, "mma_sync": 1}
PAIRS: dict[str, Any] = {**WARPS, "row_blocks": 2}


def warp_builds(tokens: int) -> list[Build]:
    """tokens: 8, 16 or 32, of a tile."""
    width: dict[str, Any] = {"tokens": max(16, tokens), "fetched": tokens}
    pairs, singles = {**width, **PAIRS}, {**width, **WARPS}
    found = [Build(**pairs, consumers=1, blocks=2), Build(**pairs, consumers=2)]
    found += [Build(**pairs, consumers=2, tiles=14, blocks=blocks) for blocks in (1, 2)]
    found += [Build(**singles, consumers=4, tiles=14)]
    found += [Build(**pairs, consumers=1, tiles=7, blocks=2)]
    found += [Build(**pairs, consumers=1, blocks=2, split=split) for split in (4, 5, 8)]
    found += [Build(**pairs, consumers=1, tiles=7, blocks=2, split=split) for split in (4, 5)]
    found += [Build(**pairs, consumers=1, tiles=6, blocks=2, split=split) for split in (3, 5)]
    found += [Build(**pairs, consumers=2, tiles=12, split=split) for split in (3, 4, 5)]
    found += [Build(**pairs, consumers=2, tiles=12, blocks=2, split=split) for split in (4, 5)]
    found += [Build(**pairs, consumers=2, split=6)]
    found += [Build(**pairs, consumers=2, tiles=10, split=split) for split in (3, 4)]
    if tokens >= 16:
        found += [Build(**pairs, consumers=2, tiles=14, cluster=2)]
    if tokens <= 16:
        found += [Build(**pairs, consumers=1, blocks=3, split=split) for split in (4, 6, 8)]
        found += [Build(**pairs, consumers=1, blocks=3)]
    found += [Build(**singles, consumers=2, blocks=2)]
    found += [Build(**singles, consumers=2, blocks=2, split=split) for split in (4, 5)]
    return found


def builds() -> list[Build | DecodeBuild]:
    """In the order of what is hoped of them, and last what they compete with."""
    found: list[Build | DecodeBuild] = []
    for tokens in (16, 8, 32):
        found += warp_builds(tokens)
    found += [DecodeBuild(tokens=8, warps=8, share=2, depth=4, chunk=1, blocks=2)]
    found += [Build(tokens=16, consumers=2, blocks=2, split=split, **NEW) for split in (1, 4, 5)]
    found += [Build(tokens=32, consumers=2, blocks=2, split=split, **NEW) for split in (4, 5)]
    found += [Build(tokens=32, consumers=4, **NEW), Build(tokens=32, consumers=3, split=5, **NEW)]
    found += [Build(**PAIRS, tokens=16, consumers=1, blocks=2, bare=1)]
    found += [Build(**PAIRS, tokens=16, consumers=2, tiles=14, blocks=b, bare=1) for b in (1, 2)]
    return found


def modes(build: Build | DecodeBuild) -> list[Mode]:
    """Without splits: whole tiles on all blocks there may be, and what leaves some room."""
    if isinstance(build, DecodeBuild) or build.split > 1:
        return [Mode(share=False, per_sm=build.blocks)]
    if build.tiles:
        whole = [1] if build.tiles == 14 else [build.blocks]
        return [Mode(share=False, per_sm=per_sm) for per_sm in whole]
    return [Mode(share=False, per_sm=build.blocks), Mode(share=True, per_sm=1)]


def plan_of(
    build: Build | DecodeBuild, mode: Mode, m: int, n: int, k: int, gpu: GpuModel
) -> LaunchPlan | None:
    """None where this build cannot run this shape this way."""
    if isinstance(build, DecodeBuild):
        return build.plan(m, n, k, gpu)
    groups = k // 128
    tiles = ceil_div(n, build.rows * build.cluster) * ceil_div(m, build.tokens)
    workers = gpu.multiprocessors * mode.per_sm // (build.cluster * build.split)
    stream_tiles = 0
    if mode.share:
        stream_tiles = tiles % workers + (workers if tiles > workers else 0)
        if tiles % workers == 0 or stream_tiles * groups < workers:
            return None
    elif build.split > 1:
        if groups < build.split:
            return None
        workers = tiles
    blocks = workers * build.cluster * build.split
    return LaunchPlan(
        kernel="prefill",
        program=build.program,
        entry="w4_prefill_linear",
        shape=LaunchShape(
            grid=(blocks, 1, 1),
            block=(128 * (build.consumers + 1), 1, 1),
            shared_bytes=build.shared_bytes,
            overlap=True,
        ),
        operands=("x_map", "codes_map", "params_map", "bias", "y", "workspace", "flags"),
        extra=(1, stream_tiles),
        boxes=Boxes(
            tokens=(build.fetched or build.tokens) // build.cluster,
            inputs=64,
            row_tiles=build.row_tiles,
            code_inputs=64 * build.slices,
        ),
        workspace_bytes=blocks * build.consumers * build.row_blocks * 256 * build.tokens
        if mode.share
        else 0,
        flags=blocks * (2 * build.rows * build.tokens if build.direct else build.consumers)
        if mode.share
        else 0,
    )


def worth_timing(build: Build | DecodeBuild, mode: Mode, m: int, n: int, gpu: GpuModel) -> bool:
    """Whether the tokens suit the tile, and most multiprocessors have something to do."""
    if isinstance(build, DecodeBuild):
        return m <= build.tokens
    most = build.fetched or build.tokens
    if not (build.tokens - 16 < m <= most) or (most == 16 and m < 8):
        return False
    blocks = ceil_div(n, build.rows * build.cluster) * build.cluster * build.split
    if build.split > 1:
        return 85 <= blocks <= gpu.multiprocessors * build.blocks
    return mode.share or blocks >= 90


# ---- the child: checks and times ---------------------------------------------------------------


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


class Bench:
    def __init__(self) -> None:
        from awqkit_runtime.kernels.w4_tiled_linear import gpu_model

        torch.manual_seed(0)
        self.gpu = gpu_model(torch.device("cuda", torch.cuda.current_device()))
        self.tiles: dict[str, list[Any]] = {}
        self.x: dict[tuple[int, int], Tensor] = {}
        self.expected: dict[tuple[int, int, int], Tensor] = {}
        self.odd: dict[tuple[int, int], Any] = {}

    def weights(self, name: str) -> list[Any]:
        if name not in self.tiles:
            n, k = LINEARS[name]
            copies = max(4, ceil_div(BEYOND_L2, int(n * k * 0.53)))
            self.tiles[name] = [random_tiles(n, k) for _ in range(copies)]
        return self.tiles[name]

    def tokens(self, m: int, k: int) -> Tensor:
        if (m, k) not in self.x:
            self.x[m, k] = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        return self.x[m, k]

    def product(self, tiles: Any, m: int) -> Tensor:
        """The FP32 product of the exactly dequantized weight."""
        n, k = tiles.out_features, tiles.in_features
        if (m, n, k) not in self.expected:
            from awqkit_runtime.kernels.w4_tiles import unpack_tiles

            dense = unpack_tiles(tiles).dequantize(torch.float32)
            counts = {m, *(TOKENS if (n, k) in LINEARS.values() else ())}
            for count in counts:
                self.expected[count, n, k] = self.tokens(count, k).float() @ dense.T
        return self.expected[m, n, k]

    def check(self, plan: LaunchPlan, tiles: Any, m: int) -> float:
        """The relative error; RuntimeError for what is not merely inexact."""
        from awqkit_runtime.kernels.w4_tiled_linear import _scratch, run_plan

        expected = self.product(tiles, m)
        x = self.tokens(m, tiles.in_features)
        results = []
        for _ in range(2):
            space = x.new_full((m + 4, tiles.out_features), float("nan"))
            run_plan(plan, x, tiles, None, space[:m])
            torch.cuda.synchronize()
            flags = _scratch(x.device)._flags
            if bool(flags.any()):
                flags.zero_()
                raise RuntimeError("left flags behind")
            if not bool(space[m:].isnan().all()):
                raise RuntimeError("wrote beyond its output")
            results.append(space[:m])
        if not torch.equal(*results):
            raise RuntimeError("gave other bits the second time, or NaN")
        error = float((results[0].float() - expected).norm() / expected.norm())
        if not error <= LIMIT * (1 + 4 / expected.numel() ** 0.5):
            raise RuntimeError(f"is wrong by {error:.3e}")
        return error

    def time(self, plan_for: Any, name: str, m: int) -> float:
        from awqkit_runtime.kernels.w4_tiled_linear import run_plan

        n, k = LINEARS[name]
        plan, weights, x = plan_for, self.weights(name), self.tokens(m, k)
        out = x.new_empty(m, n)

        def work() -> None:
            for i in range(LAUNCHES):
                run_plan(plan, x, weights[i % len(weights)], None, out)

        return microseconds(work) / LAUNCHES


def random_tiles(n: int, k: int) -> Any:
    from awqkit_runtime.kernels.w4_tiles import empty_tiles

    tiles = empty_tiles(n, k, torch.device("cuda", torch.cuda.current_device()))
    tiles.codes.random_(-(2**31), 2**31 - 1)
    scales = (torch.rand(tiles.params.shape, device="cuda") * 0.01).half().view(torch.int16)
    zeros = torch.randint(16, tiles.params.shape, device="cuda", dtype=torch.int32)
    tiles.params.copy_((zeros | 0x4300) << 16 | scales.to(torch.int32))
    return tiles


def run_build(bench: Bench, index: int) -> None:
    build = builds()[index]
    for mode in modes(build):
        try:
            if not build.bare:
                check_odd(bench, build, mode)
        except RuntimeError as error:
            say(index=index, mode=mode.label, failed=f"odd shapes: {error}")
            if "CUDA error" in str(error):
                raise
            continue
        for name, (n, k) in LINEARS.items():
            for m in TOKENS:
                plan = plan_of(build, mode, m, n, k, bench.gpu)
                if plan is None or not worth_timing(build, mode, m, n, bench.gpu):
                    continue
                case = {"index": index, "mode": mode.label, "linear": name, "m": m}
                try:
                    wrong = 0.0 if build.bare else bench.check(plan, bench.weights(name)[0], m)
                    say(**case, error=wrong, us=bench.time(plan, name, m))
                except RuntimeError as problem:
                    say(**case, failed=str(problem)[:200])
                    if "CUDA error" in str(problem):
                        raise


def check_odd(bench: Bench, build: Build | DecodeBuild, mode: Mode) -> None:
    for n, k in ODD:
        if (n, k) not in bench.odd:
            bench.odd[n, k] = random_tiles(n, k)
        most = build.fetched or build.tokens
        for m in (1, most // 2 + 1, most, *([most + 3] if most == build.tokens else [])):
            plan = plan_of(build, mode, m, n, k, bench.gpu)
            if plan is not None:
                try:
                    bench.check(plan, bench.odd[n, k], m)
                except RuntimeError as error:
                    raise RuntimeError(f"{m} x {n} x {k} {error}") from error


def run_today(bench: Bench) -> None:
    """What the plan of today takes."""
    from awqkit_runtime.kernels.w4_plan import plan_w4_linear

    for name, (n, k) in LINEARS.items():
        for m in TOKENS:
            us = bench.time(plan_w4_linear(m, n, k, bench.gpu), name, m)
            say(index=-1, mode="today", linear=name, m=m, us=us)


def run_blocks(bench: Bench, candidates: dict[str, list[list[list[Any]]]]) -> None:
    """One block's four linears in order, for each M: the plans of today, and the best mixture.

    candidates: for each M and linear [index of a build, mode], the fastest by itself first. Kernels
    of different sizes get in each other's way, so the mixture is sought by trying them in turn.
    """
    for m_text, lists in candidates.items():
        m = int(m_text)
        say(block="today", m=m, us=time_block(bench, m, [[-1, ""]] * len(lists)))
        best = [options[0] for options in lists]
        least = time_block(bench, m, best)
        say(block="first", m=m, us=least, choice=best)
        for _ in range(2):
            for position, options in enumerate(lists):
                for option in options:
                    trial = [*best[:position], option, *best[position + 1 :]]
                    if trial == best:
                        continue
                    us = time_block(bench, m, trial)
                    if us < least:
                        best, least = trial, us
        say(block="mixture", m=m, us=least, choice=best)


def time_block(bench: Bench, m: int, choice: list[list[Any]]) -> float:
    from awqkit_runtime.kernels.w4_plan import plan_w4_linear
    from awqkit_runtime.kernels.w4_tiled_linear import run_plan

    sets = 12
    plans = []
    for (n, k), (index, label) in zip(LINEARS.values(), choice, strict=True):
        plan = plan_w4_linear(m, n, k, bench.gpu)
        if index >= 0:
            build = builds()[index]
            mode = next(mode for mode in modes(build) if mode.label == label)
            plan = plan_of(build, mode, m, n, k, bench.gpu) or plan
        plans.append(plan)
    outs = [bench.tokens(m, 4096).new_empty(m, n) for n, _ in LINEARS.values()]

    def work() -> None:
        for i in range(sets):
            for (name, (_, k)), plan, out in zip(LINEARS.items(), plans, outs, strict=True):
                weights = bench.weights(name)
                run_plan(plan, bench.tokens(m, k), weights[i % len(weights)], None, out)

    return microseconds(work) / sets


def room_class(event: dict[str, Any]) -> tuple[Any, ...]:
    """What decides how a kernel gets on with its neighbours: blocks an SM, and how many run."""
    if event["index"] < 0:
        return ("today",)
    build = builds()[event["index"]]
    if isinstance(build, DecodeBuild):
        return ("decode", build.blocks, build.share)
    return (build.mma_sync, build.blocks, build.split, event["mode"])


def best_of_each_class(cases: list[dict[str, Any]]) -> list[list[Any]]:
    """[index, mode] of the fastest of each class, the fastest first."""
    kept: dict[tuple[Any, ...], list[Any]] = {}
    for event in cases:
        kept.setdefault(room_class(event), [event["index"], event["mode"]])
    return list(kept.values())[:8]


def child(arguments: argparse.Namespace) -> None:
    bench = Bench()
    gc.freeze()  # Every capture collects garbage, and all that was imported is none.
    if arguments.blocks:
        run_blocks(bench, json.loads(arguments.blocks))
        return
    for index in json.loads(arguments.child):
        say(start=index)
        run_today(bench) if index < 0 else run_build(bench, index)


# ---- the parent --------------------------------------------------------------------------------


def events(arguments: list[str], deadline: float) -> Iterator[dict[str, Any]]:
    """What a child says; ends when it ends, falls silent for too long, or time is up."""
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    errors: list[str] = []

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put(None)

    def read_errors() -> None:
        errors.extend(process.stderr or ())

    for target in (read, read_errors):
        threading.Thread(target=target, daemon=True).start()
    problem = ""
    while True:
        try:
            line = lines.get(timeout=max(0.1, min(SILENCE_S, deadline - time.monotonic())))
        except queue.Empty:
            problem = "hung or ran out of time"
            break
        if line is None:
            process.wait()
            break
        if line.startswith("{"):
            yield json.loads(line)
    process.kill()
    if process.wait() or problem:
        yield {"died": problem or " ".join("".join(errors[-3:]).split())[-300:]}


def collect(indices: list[int], deadline: float) -> list[dict[str, Any]]:
    """All figures; a child that dies is replaced by one for the builds after the fatal one."""
    found = []
    while indices and time.monotonic() < deadline:
        running = None
        died = False
        for event in events(["--child", json.dumps(indices)], deadline):
            if "start" in event:
                running = event["start"]
            elif "died" in event:
                died = True
                found.append({"index": running or 0, "mode": "", "failed": event["died"]})
            else:
                found.append(event)
        if not died or running is None:
            break
        indices = indices[indices.index(running) + 1 :]
    return found


def label_of(event: dict[str, Any]) -> str:
    build = "today" if event["index"] < 0 else builds()[event["index"]].label
    mode = "" if event["index"] < 0 else event["mode"]
    return f"{build} {mode}".strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child")
    parser.add_argument("--blocks")
    arguments = parser.parse_args()
    if arguments.child or arguments.blocks:
        child(arguments)
        return
    begin = time.monotonic()
    deadline = begin + TOTAL_S
    broken = set(compile_all())
    print(f"built {len(builds()) - len(broken)} in {time.monotonic() - begin:.0f} s", flush=True)
    figures = collect([-1, *(i for i in range(len(builds())) if i not in broken)], deadline - 12)
    timed = [event for event in figures if "us" in event]
    for event in figures:
        if "failed" in event:
            where = f"{event.get('linear', '')} {event.get('m', '')}"
            print(f"FAILED {label_of(event)} {where}: {event['failed']}"[:220])
    candidates = {}
    for m in TOKENS:
        best, today = [], 0.0
        options: list[list[list[Any]]] = []
        for name in LINEARS:
            cases = [event for event in timed if event["linear"] == name and event["m"] == m]
            cases.sort(key=lambda event: event["us"])
            bare = [event for event in cases if "BARE" in label_of(event)]
            cases = [event for event in cases if event not in bare]
            shown = ", ".join(f"{label_of(event)} {event['us']:.2f}" for event in cases[:6])
            now = next((event["us"] for event in cases if event["index"] < 0), float("nan"))
            print(f"M={m:3} {name:8} today {now:6.2f} | {shown}")
            if bare:
                print(" " * 15 + ", ".join(f"{label_of(e)} {e['us']:.2f}" for e in bare[:3]))
            today += now
            best += cases[:1]
            options.append(best_of_each_class(cases))
        print(f"M={m:3} sum      today {today:6.2f} | best {sum(e['us'] for e in best):.2f}")
        if len(best) == len(LINEARS):
            candidates[m] = options
    blocks = list(events(["--blocks", json.dumps(candidates)], time.monotonic() + 40))
    for event in blocks:
        if "died" in event:
            print(f"blocks died: {event['died']}")
            continue
        chosen = [
            label_of({"index": index, "mode": mode}) for index, mode in event.get("choice", [])
        ]
        print(
            f"block in order, M={event['m']:3} {event['block']:7} {event['us']:.2f}",
            *chosen,
            sep=" | ",
        )
    if arguments.json:
        named = [{**event, "label": label_of(event)} for event in figures]
        document = {"figures": named, "blocks": blocks, "builds": [asdict(b) for b in builds()]}
        arguments.json.write_text(json.dumps(document))
    print(f"{time.monotonic() - begin:.0f} s")


def compile_all() -> list[int]:
    """Builds them all into the cache; the indices of those that do not compile."""
    from concurrent.futures import ThreadPoolExecutor

    from awqkit_runtime.kernels.w4_plan import plan_w4_linear

    gpu = GpuModel(arch="sm_90a", multiprocessors=132)
    today = {plan_w4_linear(m, n, k, gpu).program for n, k in LINEARS.values() for m in TOKENS}
    programs = [*(build.program for build in builds()), *today]

    def one(index: int) -> str:
        try:
            compile_programs([programs[index]], "sm_90a")
        except RuntimeError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        problems = list(pool.map(one, range(len(programs))))
    for index, problem in enumerate(problems):
        if problem:
            print(f"FAILED {programs[index].name}: {problem[-300:]}")
    return [index for index, problem in enumerate(problems) if problem]


if __name__ == "__main__":
    main()
