"""awqkit-runtime plan: what fits into the memory of this machine, or of another one."""

from __future__ import annotations

import json
from typing import Any

import click

from awqkit_runtime.commands.console import paragraph_errors
from awqkit_runtime.commands.options import engine_options, engine_settings
from awqkit_runtime.config import EngineConfig


@click.command()
@click.argument("model")
@click.option(
    "--memory",
    metavar="SIZE",
    help="Plan for a card with this much memory, such as 24GiB, instead of this machine.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@engine_options
@paragraph_errors
def plan(model: str, memory: str | None, *, as_json: bool, **options: Any) -> None:
    """Show where the memory goes when MODEL is served: weights, KV cache, workspace.

    MODEL is a folder, which need hold no more than a config.json, or a hub id, of which only the
    config.json is fetched. With --memory and no --device the plan is for a GPU.
    """
    from awqkit_runtime.commands import plan_report
    from awqkit_runtime.model_size import place, read_model_size
    from awqkit_runtime.plan import plan_memory
    from awqkit_runtime.room import find_room

    engine = EngineConfig(**engine_settings(options))
    room = find_room(memory, engine)
    size = read_model_size(model, engine.model_format)
    placement = place(size.config, engine, room.device)
    comparison = plan_report.compare(size, room.memory, engine, placement)
    dtype = str(placement.dtype).removeprefix("torch.")
    if not as_json:
        session_len = engine.session_len or size.config.max_position_embeddings
        plan_report.show_comparison(comparison, room, session_len, dtype)
    chosen = plan_memory(
        size.config,
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
