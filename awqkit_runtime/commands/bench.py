"""awqkit-runtime bench: how fast a model runs on this machine."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from awqkit_runtime.bench.scenarios import SCENARIOS, default_scenarios
from awqkit_runtime.commands import bench_report
from awqkit_runtime.commands.bench_stress import run_stress
from awqkit_runtime.commands.console import paragraph_errors, working
from awqkit_runtime.commands.options import engine_settings, loading_options, tp_option
from awqkit_runtime.config import QUANT_POLICIES, EngineConfig

_NAMES = [scenario.name for scenario in SCENARIOS]
#: Parameters that only one kind of bench reads.
_TIMING_OPTIONS = ("names", "seconds", "max_prefill_tokens")
_STRESS_OPTIONS = ("deterministic", "quant_policy")


@click.command(short_help="Time steps: decoding, prompts, a quantized cache.")
@click.argument("model", required=False)
@click.option(
    "--scenario",
    "names",
    type=click.Choice(_NAMES),
    multiple=True,
    metavar="NAME",
    help="Run this one; may be repeated.  [default: what suits the device]",
)
@click.option("--list", "show_list", is_flag=True, help="Name the scenarios, and stop.")
@click.option(
    "--random-weights",
    is_flag=True,
    help="Time a model of MODEL's shape with random weights; a config.json is enough, and "
    "--model-format awq makes them 4-bit.",
)
@click.option(
    "--stress",
    "requests",
    type=click.IntRange(min=1),
    metavar="N",
    help="Instead of timing, serve N random requests from a cache too small for them, and check "
    "that every page comes back and every request ends.",
)
@click.option(
    "--deterministic",
    is_flag=True,
    help="With --stress: serve deterministically, and compare answers with an idle engine's.",
)
@click.option(
    "--quant-policy",
    type=click.Choice([str(policy) for policy in QUANT_POLICIES]),
    default=str(EngineConfig.quant_policy),
    show_default=True,
    help="With --stress: the format of the KV cache, as for serve; scenarios name theirs.",
)
@click.option(
    "--max-prefill-tokens",
    type=click.IntRange(min=1),
    help="New tokens in one step, longer prompts are split; without it what suits the device.",
)
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
@tp_option
@loading_options
@paragraph_errors
def bench(
    model: str | None,
    names: tuple[str, ...],
    seconds: float,
    json_path: Path | None,
    *,
    show_list: bool,
    requests: int | None,
    deterministic: bool,
    **options: Any,
) -> None:
    """Time steps of the engine with MODEL: decoding, prompts, a quantized KV cache.

    The limit of a step follows from the bytes that it moves and the arithmetic that it does, and
    from what this machine was measured to do of both; what fits into caches can pass it.
    """
    if show_list:
        for scenario in SCENARIOS:
            click.echo(f"{scenario.name:28} {bench_report.describe(scenario)}")
        return
    if model is None:
        raise click.UsageError("Name the MODEL, or --list the scenarios.")
    if isnan(seconds):
        raise click.BadParameter("it must be a number.", param_hint="'--seconds'")
    _refuse_what_has_no_effect(stress=requests is not None)
    if json_path is not None:
        bench_report.refuse_unwritable(json_path)
    if requests is not None:
        document = run_stress(model, requests, options, deterministic=deterministic)
    else:
        document = _time_scenarios(model, names, seconds, options)
    if json_path is not None:
        bench_report.write_document(json_path, document)


def _refuse_what_has_no_effect(*, stress: bool) -> None:
    """A usage error for an option that the user gave, and that this kind of bench does not read."""
    context = click.get_current_context()
    for name in _TIMING_OPTIONS if stress else _STRESS_OPTIONS:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = next(one.opts[0] for one in context.command.params if one.name == name)
            raise click.UsageError(
                f"--stress times nothing; leave {option} out."
                if stress
                else f"{option} belongs to --stress."
            )


def _time_scenarios(
    model: str, names: tuple[str, ...], seconds: float, options: dict[str, Any]
) -> dict[str, Any]:
    from awqkit_runtime.bench.runs import measure_speed, run_scenarios
    from awqkit_runtime.bench.subject import load_subject

    config = EngineConfig(**engine_settings(options))
    with working(f"Loading {model}"):
        subject = load_subject(model, config, random_weights=options["random_weights"])
    decoder = subject.decoder
    chosen = [scenario for scenario in SCENARIOS if scenario.name in names]
    chosen = chosen or [*default_scenarios(decoder.device.type)]
    settings = EngineConfig(max_prefill_tokens=options["max_prefill_tokens"])
    step_tokens = settings.prefill_tokens_for(decoder.device)
    with working("Measuring the machine"):
        speed = measure_speed(decoder)
    with working("Timing"):
        rows = list(run_scenarios(subject, chosen, speed, seconds=seconds, step_tokens=step_tokens))
    bench_report.show_table(speed, rows)
    weights = "random" if options["random_weights"] else "checkpoint"
    figures = bench_report.scenario_figures(
        speed, rows, step_tokens=step_tokens, weights=weights, ranks=subject.ranks
    )
    return bench_report.as_document(model, decoder.device, figures)
