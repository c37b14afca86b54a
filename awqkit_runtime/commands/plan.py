"""awqkit-runtime plan: what fits into the memory of this machine, or of another one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import click

from awqkit_runtime.commands.console import paragraph_errors
from awqkit_runtime.commands.options import engine_options, engine_settings
from awqkit_runtime.config import EngineConfig

#: As kernels.w4_plan.MULTIPROCESSORS knows them; that would load torch just to show the help.
ARCHITECTURES = ("sm_80", "sm_89", "sm_90a", "sm_100a")


@click.command(short_help="Show where the memory goes when MODEL is served.")
@click.argument("model", required=False)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Plan for a card with this much memory, such as 24GiB, instead of this machine.",
)
@click.option(
    "--kernels",
    is_flag=True,
    help="Show instead which CUDA kernels run for how many tokens; MODEL may be left out.",
)
@click.option(
    "--arch",
    type=click.Choice(ARCHITECTURES),
    help="With --kernels: the GPU to plan for, which need not be here.  [default: this machine's, "
    f"or {ARCHITECTURES[2]}]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@engine_options
@paragraph_errors
def plan(
    model: str | None,
    memory: str | None,
    *,
    kernels: bool,
    arch: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show where the memory goes when MODEL is served: weights, KV cache, workspace.

    MODEL is a folder, which need hold no more than a config.json, or a hub id, of which only the
    config.json is fetched. With --memory and no --device the plan is for a GPU.
    """
    if kernels:
        _plan_kernels(model, arch, options["model_format"], as_json=as_json)
    elif model is None:
        raise click.UsageError("Missing argument 'MODEL'.")
    elif arch is not None:
        raise click.UsageError("--arch belongs to --kernels.")
    else:
        _plan_memory(model, memory, options, as_json=as_json)


def _plan_memory(model: str, memory: str | None, options: dict[str, Any], *, as_json: bool) -> None:
    from awqkit_runtime.commands import plan_report
    from awqkit_runtime.engine.plan import plan_memory
    from awqkit_runtime.model_size import place, read_model_size
    from awqkit_runtime.room import find_room

    engine = EngineConfig(**engine_settings(options))
    room = find_room(memory, engine)
    size = replace(read_model_size(model, engine.model_format), ranks=engine.tp)
    placement = place(size.config, engine, room.device)
    comparison = plan_report.compare(size, room.memory, engine, placement)
    dtype = str(placement.dtype).removeprefix("torch.")
    if not as_json:
        session_len = engine.session_len or size.config.max_position_embeddings
        plan_report.show_comparison(comparison, room, session_len, dtype, engine.tp)
    chosen = plan_memory(
        size.local,
        weights=size.weights(placement),
        memory=room.memory,
        engine=engine,
        placement=placement,
    )
    if as_json:
        document = plan_report.as_document(model, chosen, size, room, comparison)
        click.echo(json.dumps(document, indent=1))
    else:
        plan_report.show_plan(chosen, size, room, dtype)


def _plan_kernels(model: str | None, arch: str | None, model_format: str, *, as_json: bool) -> None:
    from awqkit_runtime.commands import kernel_report
    from awqkit_runtime.kernel_plan import EXAMPLE, linear_shapes
    from awqkit_runtime.model_size import read_model_size

    linears = list(EXAMPLE)
    if model is not None:
        size = read_model_size(model, model_format)
        if size.form == "dense":
            size = size.other_form()  # As it would run once it is quantized.
        linears = linear_shapes(size.config, size.bits_of)
    gpu = kernel_report.gpu_to_plan_for(arch)
    if as_json:
        click.echo(json.dumps(kernel_report.as_document(linears, gpu), indent=1))
    else:
        kernel_report.show_kernels(linears, gpu)
