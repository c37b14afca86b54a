"""awqkit-runtime bench: how fast a model runs on this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from awqkit_runtime.bench.scenarios import SCENARIOS, Scenario
from awqkit_runtime.commands.console import paragraph_errors, working
from awqkit_runtime.commands.options import loading_options
from awqkit_runtime.errors import OutputError

if TYPE_CHECKING:
    from rich.table import Table

    from awqkit_runtime.bench.runs import Result, Skipped, Speed

_NAMES = [scenario.name for scenario in SCENARIOS]


@click.command()
@click.argument("model", required=False)
@click.option(
    "--scenario",
    "names",
    type=click.Choice(_NAMES),
    multiple=True,
    metavar="NAME",
    help="Run this one; may be repeated.  [default: all]",
)
@click.option("--list", "show_list", is_flag=True, help="Name the scenarios, and stop.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Time for all scenarios together, after loading.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the figures, with machine, commit and command.",
)
@loading_options
@paragraph_errors
def bench(
    model: str | None,
    names: tuple[str, ...],
    seconds: float,
    json_path: Path | None,
    *,
    show_list: bool,
    **options: Any,
) -> None:
    """Time steps of the engine with MODEL: decoding, prompts, a quantized KV cache.

    The limit of a step follows from the bytes that it moves and the arithmetic that it does, and
    from what this machine was measured to do of both; what fits into caches can pass it.
    """
    if show_list:
        for scenario in SCENARIOS:
            click.echo(f"{scenario.name:20} {_describe(scenario)}")
        return
    if model is None:
        raise click.UsageError("Name the MODEL to time, or --list the scenarios.")
    if json_path is not None and json_path.is_dir():
        raise OutputError(f"--json {json_path} is a folder; name a file.")
    chosen = [scenario for scenario in SCENARIOS if not names or scenario.name in names]
    speed, rows = _run(model, chosen, seconds, options)
    if json_path is not None:
        _write(json_path, _document(model, speed, rows, options))


def _run(
    model: str, scenarios: list[Scenario], seconds: float, options: dict[str, Any]
) -> tuple[Speed, list[Result | Skipped]]:
    from rich.console import Console

    from awqkit.checkpoint import open_checkpoint
    from awqkit_runtime.bench.runs import measure_speed, run_scenarios
    from awqkit_runtime.models.loader import load_decoder

    checkpoint = open_checkpoint(model, model_format=options["model_format"])
    with working(f"Loading {model}"):
        decoder = load_decoder(checkpoint, device=options["device"], dtype=options["dtype"])
    with working("Measuring the machine"):
        speed = measure_speed(decoder)
    rows = []
    with working("Timing"):
        for row in run_scenarios(
            decoder, checkpoint.is_quantized, scenarios, speed, seconds=seconds
        ):
            rows.append(row)
    Console().print(_table(speed, rows))
    return speed, rows


def _describe(scenario: Scenario) -> str:
    sequences = "1 sequence" if scenario.batch == 1 else f"{scenario.batch} sequences"
    policy = "" if scenario.quant_policy == 0 else f", --quant-policy {scenario.quant_policy}"
    if scenario.new_tokens == 1:
        return f"a token for {sequences} after {scenario.context} each{policy}"
    return f"a prompt of {scenario.new_tokens} tokens for {sequences}{policy}"


def _table(speed: Speed, rows: list[Result | Skipped]) -> Table:
    from rich import box
    from rich.table import Table

    from awqkit_runtime.bench.runs import Skipped

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("scenario", no_wrap=True)
    for column in ("ms a step", "tokens/s", "limit, ms", "reached"):
        table.add_column(column, justify="right")
    table.add_column("by")
    for row in rows:
        if isinstance(row, Skipped):
            table.add_row(row.scenario.name, "skipped", end_section=False)
            continue
        table.add_row(
            row.scenario.name,
            f"{row.seconds * 1e3:,.2f}",
            f"{row.tokens_per_second:,.1f}",
            f"{row.limit * 1e3:,.2f}",
            f"{row.limit / row.seconds:.0%}",
            row.limited_by,
        )
    skipped = [f"{row.scenario.name}: {row.reason}" for row in rows if isinstance(row, Skipped)]
    measured = (
        f"Measured here: {speed.bandwidth / 1e9:.1f} GB/s of memory bandwidth, "
        f"{speed.multiply_rate / 1e9:,.0f} billion operations a second."
    )
    table.caption = "\n".join([measured, *(f"Skipped {line}." for line in skipped)])
    table.caption_justify = "left"
    return table


def _document(
    model: str, speed: Speed, rows: list[Result | Skipped], options: dict[str, Any]
) -> dict[str, Any]:
    from awqkit_runtime.bench.machine import current_commit, describe_machine
    from awqkit_runtime.bench.runs import Skipped
    from awqkit_runtime.config import resolve_device

    return {
        "command": " ".join(["awqkit-runtime", *sys.argv[1:]]),
        "commit": current_commit(),
        "machine": describe_machine(resolve_device(options["device"])),
        "model": Path(model).name,
        "bandwidth_gb_per_s": speed.bandwidth / 1e9,
        "giga_operations_per_s": speed.multiply_rate / 1e9,
        "results": [_figures(row) for row in rows if not isinstance(row, Skipped)],
        "skipped": {row.scenario.name: row.reason for row in rows if isinstance(row, Skipped)},
    }


def _figures(row: Result) -> dict[str, Any]:
    return {
        "scenario": asdict(row.scenario),
        "ms_per_step": row.seconds * 1e3,
        "tokens_per_s": row.tokens_per_second,
        "calls": row.calls,
        "bytes": row.work.bytes,
        "operations": row.work.operations,
        "limit_ms": row.limit * 1e3,
        "limited_by": row.limited_by,
    }


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error
    click.echo(f"Written to {path}")
