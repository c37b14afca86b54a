"""Figures of a bench as a table, and as the JSON that a file gets."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from awqkit_runtime.bench.scenarios import Scenario
from awqkit_runtime.errors import OutputError

if TYPE_CHECKING:
    import torch

    from awqkit_runtime.bench.runs import Result, Skipped, Speed


def describe(scenario: Scenario) -> str:
    """What a scenario computes, in words."""
    sequences = "1 sequence" if scenario.batch == 1 else f"{scenario.batch} sequences"
    policy = "" if scenario.quant_policy == 0 else f", int{scenario.quant_policy} cache"
    if scenario.new_tokens == 1:
        return f"a token for {sequences} after {scenario.context} each{policy}"
    return f"a prompt of {scenario.new_tokens} tokens for {sequences}{policy}"


def show_table(speed: Speed, rows: list[Result | Skipped]) -> None:
    """Print milliseconds beside the least that they could be."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from awqkit_runtime.bench.runs import Skipped

    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))  # Fits into 80 columns.
    table.add_column("scenario", no_wrap=True)
    for column in ("limit, ms", "ms", "reached", "tokens/s"):
        table.add_column(column, justify="right")
    table.add_column("by")
    for row in rows:
        if isinstance(row, Skipped):
            table.add_row(row.scenario.name, "", "skipped")
            continue
        table.add_row(
            row.scenario.name,
            f"{row.limit * 1e3:,.2f}",
            f"{row.seconds * 1e3:,.2f}",
            f"{row.limit / row.seconds:.0%}",
            f"{row.tokens_per_second:,.1f}",
            row.limited_by,
        )
    skipped = [f"{row.scenario.name}: {row.reason}" for row in rows if isinstance(row, Skipped)]
    measured = (
        f"Measured here: {speed.bandwidth / 1e9:,.1f} GB/s of memory bandwidth, "
        f"{speed.multiply_rate / 1e9:,.0f} billion operations a second."
    )
    table.caption = "\n".join([measured, *(f"Skipped {line}." for line in skipped)])
    table.caption_justify = "left"
    Console().print(table)


def as_document(model: str, device: torch.device, figures: dict[str, Any]) -> dict[str, Any]:
    """Figures with what they need beside them: command, commit, machine."""
    from awqkit_runtime.bench.machine import current_commit, describe_machine

    return {
        "command": " ".join(["awqkit-runtime", *sys.argv[1:]]),
        "commit": current_commit(),
        "machine": describe_machine(device),
        "model": Path(model).name,
        **figures,
    }


def scenario_figures(
    speed: Speed, rows: list[Result | Skipped], *, step_tokens: int, weights: str, ranks: int
) -> dict[str, Any]:
    """weights: "checkpoint" or "random"."""
    from awqkit_runtime.bench.runs import Skipped

    return {
        "weights": weights,
        "tp": ranks,
        "max_prefill_tokens": step_tokens,
        "bandwidth_gb_per_s": speed.bandwidth / 1e9,
        "giga_operations_per_s": speed.multiply_rate / 1e9,
        "results": [_figures(row) for row in rows if not isinstance(row, Skipped)],
        "skipped": {row.scenario.name: row.reason for row in rows if isinstance(row, Skipped)},
    }


def _figures(row: Result) -> dict[str, Any]:
    return {
        "scenario": asdict(row.scenario),
        "ms": row.seconds * 1e3,
        "tokens_per_s": row.tokens_per_second,
        "calls": row.calls,
        "bytes": row.work.bytes,
        "operations": row.work.operations,
        "limit_ms": row.limit * 1e3,
        "limited_by": row.limited_by,
    }


def refuse_unwritable(path: Path) -> None:
    """OutputError where a document could not be written, before the long work begins."""
    if path.is_dir():
        raise OutputError(f"--json {path} is a folder; name a file.")
    target = path.absolute()
    there = next(place for place in (target, *target.parents) if os.path.exists(place))
    if not os.access(there, os.W_OK) or not (there == target or there.is_dir()):
        kind = "file" if there == target else "folder"
        raise OutputError(f"--json {path} cannot be written: {there} is no {kind} to write into.")


def write_document(path: Path, document: dict[str, Any]) -> None:
    """OutputError where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error
    click.echo(f"Written to {path}")
