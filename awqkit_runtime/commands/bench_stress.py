"""awqkit-runtime bench --stress: many random requests, and whether the engine kept its promises."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from awqkit_runtime.commands.bench_report import as_document
from awqkit_runtime.commands.console import progress_bar, working
from awqkit_runtime.commands.options import engine_settings
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.errors import StressError

if TYPE_CHECKING:
    from awqkit_runtime.bench.stress import StressReport

#: Answers that are asked for again.
_COMPARED = 200


def run_stress(
    model: str, requests: int, options: dict[str, Any], *, deterministic: bool
) -> dict[str, Any]:
    """Print what came of it, and return it as JSON holds it; StressError for a broken promise."""
    from awqkit_runtime.bench import stress
    from awqkit_runtime.bench.subject import load_subject

    config = EngineConfig(**engine_settings(options), deterministic=deterministic)
    with working(f"Loading {model}"):
        subject = load_subject(
            model,
            config,
            random_weights=options["random_weights"],
            longest=stress.SESSION_LEN,
        )
    compare = min(_COMPARED, requests) if deterministic else 0
    doing = "Serving and comparing" if compare else f"Serving {requests:,} requests"
    with progress_bar(doing, requests + compare) as advance:
        report = stress.run_stress(
            subject,
            count=requests,
            compare=compare,
            quant_policy=config.policy,
            on_request=lambda: advance(1),
        )
    _show(report)
    if report.problems:
        raise StressError("The engine broke a promise. " + " ".join(report.problems))
    figures = {
        "deterministic": deterministic,
        "quant_policy": config.policy,
        "stress": asdict(report),
    }
    return as_document(model, subject.decoder.device, figures)


def _show(report: StressReport) -> None:
    back = report.total_pages - report.pages_not_back
    click.echo(
        f"{report.requests:,} requests, {report.aborted:,} of them aborted: {report.tokens:,} "
        f"tokens in {report.steps:,} steps, {report.seconds:.1f} s.\n"
        f"Preemptions: {report.preemptions:,}. Pages back: {back} of {report.total_pages}.\n"
        f"Longest from arrival to end: {report.longest_wait:,} steps; the scheduler's order "
        f"allows {report.longest_allowed:,} there."
    )
    if report.compared:
        click.echo(f"Compared with an idle engine: {report.compared} answers.")
