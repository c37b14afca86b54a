"""A memory plan as tables, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat
from awqkit_runtime.commands.console import note
from awqkit_runtime.config import QUANT_POLICIES, EngineConfig, QuantPolicy, TokenCount
from awqkit_runtime.engine.plan import DoesNotFit, MemoryPlan, plan_memory
from awqkit_runtime.errors import ConfigError
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.model_size import ModelSize, WeightForm
from awqkit_runtime.models.loader import resolve_session_len
from awqkit_runtime.room import Room
from awqkit_runtime.units import human_bytes


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """The same machine with weights of this form and a cache of this policy."""

    form: WeightForm
    quant_policy: QuantPolicy
    #: Bytes.
    weights: int
    bytes_per_token: int
    #: None where it does not fit, for lack of what comes next.
    plan: MemoryPlan | None
    lacking: str | None


def compare(
    size: ModelSize, memory: int, engine: EngineConfig, placement: Placement
) -> list[Alternative]:
    """Every form of weights with every policy; ConfigError for a session that is too long."""
    resolve_session_len(size.config, engine.session_len)
    forms = sorted((size, size.other_form()), key=lambda size: size.form)
    if size.weights(placement) == size.other_form().weights(placement):
        forms = [size]  # No linear can be quantized.
    return [
        _alternative(form, memory, replace(engine, quant_policy=policy), placement)
        for form in forms
        for policy in QUANT_POLICIES
    ]


def _alternative(
    size: ModelSize, memory: int, engine: EngineConfig, placement: Placement
) -> Alternative:
    weights = size.weights(placement)
    plan: MemoryPlan | None = None
    lacking = None
    try:
        plan = plan_memory(
            size.local, weights=weights, memory=memory, engine=engine, placement=placement
        )
    except DoesNotFit as error:
        lacking = error.lacking
    except ConfigError:
        lacking = "no such cache"
    page_format = PageFormat.for_policy(size.local, engine.policy, placement.dtype)
    return Alternative(
        form=size.form,
        quant_policy=engine.policy,
        weights=weights,
        bytes_per_token=page_format.bytes_per_token,
        plan=plan,
        lacking=lacking,
    )


def show_comparison(
    alternatives: Sequence[Alternative], room: Room, session_len: int, dtype: str, ranks: int
) -> None:
    """Print how many tokens and sessions fit with each form and policy."""
    where = f"{human_bytes(room.memory)} ({room.origin}, {room.device.type})"
    each = "" if ranks == 1 else f" on each of {ranks} ranks"
    title = f"What fits into {where}{each}, in sessions of {session_len:,} tokens"
    table = _table(title)
    for column in ("weights", "size", "policy", "a token", "cache", "tokens", "sessions"):
        table.add_column(column, justify="left" if column == "weights" else "right", no_wrap=True)
    for row in alternatives:
        fits = (str(row.lacking), "", "") if row.plan is None else _cache_cells(row.plan)
        table.add_row(
            dtype if row.form == "dense" else row.form,
            human_bytes(row.weights),
            str(row.quant_policy),
            human_bytes(row.bytes_per_token),
            *fits,
            end_section=row.quant_policy == QUANT_POLICIES[-1],
        )
    Console().print(table)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)


def _cache_cells(plan: MemoryPlan) -> tuple[str, str, str]:
    return human_bytes(plan.cache), f"{plan.tokens:,}", f"{plan.sessions:,}"


def show_plan(plan: MemoryPlan, size: ModelSize, room: Room, dtype: str) -> None:
    """Print the arithmetic of one plan, step by step."""
    form = dtype if size.form == "dense" else "int4"
    title = f"With weights in {form} and --quant-policy {plan.quant_policy}"
    table = _table(title)
    for column in ("", "size", "bytes", "how"):
        table.add_column(column, justify="right" if column in ("size", "bytes") else "left")
    for name, count, how in _steps(plan, size, room):
        table.add_row(name, human_bytes(count), f"{count:,}", how)
    Console().print(table)
    Console().print(_summary(plan), highlight=False)
    if plan.left < 0:
        note(
            f"The largest step may take {human_bytes(-plan.left)} more than there is. Lower "
            "--cache-max-entry-count, --max-batch-size, --max-prefill-tokens or --session-len."
        )


def _steps(plan: MemoryPlan, size: ModelSize, room: Room) -> list[tuple[str, int, str]]:
    source = "estimated from config.json" if size.estimated else "from the files"
    asked = describe_cache_size(plan.cache_size)
    if room.device.type == "cpu" and plan.sessions == plan.max_batch_size:
        asked = f"{plan.max_batch_size} sessions, the most at once"
    step = f"a step of {plan.step_tokens:,} new tokens"
    kept = [
        ("− graphs", plan.graphs, f"of steps of up to {plan.max_batch_size} sequences"),
        ("− libraries", plan.libraries, "and the code of kernels, about"),
    ]
    return [
        ("memory", plan.memory, room.origin),
        ("− weights", plan.weights, source),
        ("= free", plan.free, ""),
        ("− cache", plan.cache, asked),
        ("− activations", plan.workspace.activations, step),
        ("− logits", plan.workspace.logits, f"and sampling, {plan.max_batch_size} at once"),
        *(line for line in kept if line[1]),
        ("= left over", plan.left, ""),
    ]


def describe_cache_size(size: float | int | TokenCount) -> str:
    """What was asked for, in words."""
    if isinstance(size, TokenCount):
        return f"{size.tokens:,} tokens"
    return f"{size:g} of what is free" if isinstance(size, float) else human_bytes(size)


def _summary(plan: MemoryPlan) -> str:
    return (
        f"Cache: {plan.pages:,} pages of {PAGE_TOKENS} tokens = {plan.tokens:,} tokens of "
        f"{plan.bytes_per_token:,} bytes. A session of {plan.session_len:,} tokens takes "
        f"{human_bytes(plan.session_bytes)}, so {plan.sessions:,} of full length fit at once. The "
        f"share of the cache is --cache-max-entry-count, of what is free after the weights; on a "
        "GPU it leaves room for all the rest in any case. On a CPU the cache is never more than "
        "--max-batch-size sessions of --session-len tokens need."
    )


def as_document(
    model: str, plan: MemoryPlan, size: ModelSize, room: Room, alternatives: Sequence[Alternative]
) -> dict[str, Any]:
    """The figures as JSON holds them; sizes in bytes."""
    return {
        "model": model,
        "device": str(room.device),
        "weight_form": size.form,
        "weights_estimated": size.estimated,
        "plan": _figures(plan),
        "alternatives": [
            asdict(replace(row, plan=None)) | {"plan": row.plan and _figures(row.plan)}
            for row in alternatives
        ],
    }


def _figures(plan: MemoryPlan) -> dict[str, Any]:
    derived = ("free", "left", "tokens", "sessions", "session_bytes")
    size = plan.cache_size
    asked = str(size) if isinstance(size, TokenCount) else size
    given = asdict(replace(plan, cache_size=0)) | {"cache_size": asked}
    return given | {name: getattr(plan, name) for name in derived}
