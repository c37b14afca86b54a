"""Steps of one model on one GPU and on several, and what a sum over these takes.

    python benchmarks/loading.py --repeat 0 --keep FOLDER
    python benchmarks/several_gpus.py FOLDER --tp 1 2 --json benchmarks/results/several_gpus.json

The first line writes random 4-bit weights in the shapes of a 7B model; any checkpoint will do.
Steps are scenarios of `awqkit-runtime bench`, milliseconds each. Sums are of rows of 4096 BF16
numbers that two GPUs have parts of, added to a residual and normed, microseconds each, out of many
in a row: by kernels that write into each other's memory, and by NCCL with the norm's kernel behind.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import save_results
from torch import Tensor

from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.meetings import Meetings, inbox_bytes, sum_places
from awqkit_runtime.kernels.rank_sum import PROGRAM, rank_sum_add_rms_norm
from awqkit_runtime.kernels.rms_norm import add_rms_norm

SCENARIOS = ("batch-1", "batch-8", "batch-32", "batch-128", "prefill-2048")
ROWS = (1, 8, 32, 128, 256)
WIDTH = 4096
RANKS = 2
#: Sums in a row, and how often these are timed.
SUMS, REPEATS = 64, 9
#: Cycles that the GPUs wait for the host, which enqueues all that is timed meanwhile.
_HEAD_START = 30_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="without one only sums are timed")
    parser.add_argument("--tp", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--scenario", nargs="+", default=list(SCENARIOS))
    parser.add_argument("--seconds", type=float, default=12.0, help="of timing, for each --tp")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sums = time_sums()
    steps: dict[str, dict[str, float]] = {}
    for ranks in arguments.tp if arguments.folder else ():
        steps[str(ranks)] = time_steps(
            arguments.folder, ranks, arguments.scenario, arguments.seconds
        )
        print(f"tp {ranks}: {steps[str(ranks)]}", flush=True)
    for name in arguments.scenario if steps else ():
        times = "  ".join(f"tp {ranks}: {of.get(name, 0):8.3f}" for ranks, of in steps.items())
        print(f"{name:16} {times}")
    if arguments.json is not None:
        save_results(arguments.json, sums=sums, steps=steps)


def time_steps(
    folder: str, ranks: int, scenarios: Sequence[str], seconds: float
) -> dict[str, float]:
    """Milliseconds by scenario, in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        found = Path(temporary) / "bench.json"
        command = [sys.executable, "-m", "awqkit_runtime", "bench", folder, "--tp", str(ranks)]
        command += [part for name in scenarios for part in ("--scenario", name)]
        subprocess.run(
            [*command, "--seconds", str(seconds), "--json", str(found)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        document = json.loads(found.read_text())
    return {row["scenario"]["name"]: round(row["ms"], 3) for row in document["results"]}


@torch.inference_mode()
def time_sums() -> list[dict[str, Any]]:
    """Two GPUs of this process; nothing where there are fewer."""
    if torch.cuda.device_count() < RANKS:
        return []
    devices = [torch.device("cuda", rank) for rank in range(RANKS)]
    found = _meet(devices)
    rows = []
    for count in ROWS:
        xs, parts = ([_random(count, device) for device in devices] for _ in "ab")
        weights = [torch.ones(WIDTH, dtype=torch.bfloat16, device=device) for device in devices]

        def by_kernels(
            xs: list[Tensor] = xs, parts: list[Tensor] = parts, weights: list[Tensor] = weights
        ) -> None:
            for each in zip(found, xs, parts, weights, strict=True):
                rank_sum_add_rms_norm(*each, 1e-5)

        def by_nccl(
            xs: list[Tensor] = xs, parts: list[Tensor] = parts, weights: list[Tensor] = weights
        ) -> None:
            torch.cuda.nccl.all_reduce(parts)
            for x, part, weight in zip(xs, parts, weights, strict=True):
                with torch.cuda.device(x.device):
                    add_rms_norm(x, part, weight, 1e-5)

        row = {"rows": count, "kernels": _microseconds(by_kernels, devices)}
        row["nccl"] = _microseconds(by_nccl, devices)
        rows.append(row)
        print("  ".join(f"{name} {value:g}" for name, value in row.items()), flush=True)
    return rows


def _meet(devices: Sequence[torch.device]) -> list[Meetings]:
    for a in devices:
        kernel(PROGRAM, "rank_sum", a)
        for b in devices:
            torch.ones(1, device=a).to(b)  # Torch lets them reach each other's memory.
    size = inbox_bytes(ranks=RANKS, rows=ROWS[-1], places=sum_places(WIDTH))
    _INBOXES[:] = [torch.zeros(size, dtype=torch.uint8, device=device) for device in devices]
    return [
        Meetings(
            rank=rank,
            inboxes=tuple(inbox.data_ptr() for inbox in _INBOXES),
            counts=torch.zeros(ROWS[-1], dtype=torch.int32, device=device),
            given_up=torch.zeros(1, dtype=torch.int32, pin_memory=True),
        )
        for rank, device in enumerate(devices)
    ]


#: Where they meet.
_INBOXES: list[Tensor] = []


def _random(rows: int, device: torch.device) -> Tensor:
    return torch.randn(rows, WIDTH, device=device).bfloat16()


def _microseconds(call: Callable[[], None], devices: Sequence[torch.device]) -> float:
    """The median time of one call out of many in a row, on the first device."""
    times = []
    for _ in range(REPEATS):
        for device in devices:
            torch.cuda.synchronize(device)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda._sleep(_HEAD_START)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        call()  # The devices have not begun at the same moment.
        begin.record(torch.cuda.current_stream(devices[0]))
        for _ in range(SUMS):
            call()
        end.record(torch.cuda.current_stream(devices[0]))
        end.synchronize()
        times.append(begin.elapsed_time(end) / SUMS * 1e3)
    return round(sorted(times)[REPEATS // 2], 2)


if __name__ == "__main__":
    main()
