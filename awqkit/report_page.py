"""The report as one self-contained page, for whoever decides whether the model is put to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from markupsafe import Markup

from awqkit.block_job import SiteResult
from awqkit.charts import Line, histogram, line_chart
from awqkit.console import human_bytes
from awqkit.errors import OutputError
from awqkit.evaluate import Evaluation
from awqkit.report import Report
from awqkit.site_picture import BINS

#: Sites with the largest errors, listed by name.
WORST = 8
#: KL in nats per token below which two models are hard to tell apart, and above which they differ
#: so much that only own questions can tell whether it matters.
CLOSE, FAR = 0.01, 0.1
NOTHING_HELD_OUT = "the text has no row of tokens beside those that calibrate"
SITE_NAMES = {
    "qkv": "attention inputs (q, k, v)",
    "o": "attention output (o)",
    "gate_up": "MLP inputs (gate, up)",
    "down": "MLP output (down)",
}


@dataclass(frozen=True, kw_only=True)
class SitePanel:
    """The pictures of one site over all blocks."""

    name: str
    errors: Markup
    weights: Markup
    clipped: float


def write_html(report: Report, path: Path) -> None:
    """Write the page. Raises OutputError where it cannot be written."""
    try:
        path.write_text(render(report), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"The report cannot be written to {path}: {error.strerror}. "
            "Give another place with --report."
        ) from error


def render(report: Report) -> str:
    """The page as HTML, with every picture inside it."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("awqkit"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bytes"] = human_bytes
    by_site = _by_site(report.sites)
    return environment.get_template("report.html.jinja").render(
        report=report,
        verdict=verdict(report.evaluation, was_wanted=report.config.evaluate),
        panels=[_panel(site, results) for site, results in by_site.items()],
        outliers=_outliers(by_site),
        positions=_positions(report),
        worst=sorted(report.sites, key=lambda site: -site.error)[:WORST],
        site_names=SITE_NAMES,
        corrected=sum("corrected" in site.kept for site in report.sites),
        total_seconds=sum(report.seconds.values()),
    )


def verdict(evaluation: Evaluation | None, *, was_wanted: bool) -> str:
    """What the figures mean for whoever decides, in a sentence or two."""
    if evaluation is None:
        reason = NOTHING_HELD_OUT if was_wanted else "--no-evaluate"
        return (
            "How much was lost is not known, since the model was not compared with the original "
            f"({reason})."
        )
    kl, agreement = evaluation.quantized.kl, 100 * evaluation.quantized.agreement
    if kl < CLOSE:
        said = "On this text the model is hard to tell from the original."
    elif kl < FAR:
        said = (
            "On this text the model is close to the original, with differences that can be seen. "
            "Try some of your own questions on both before it is put to use."
        )
    else:
        said = (
            "On this text the model differs clearly from the original. Compare answers to your own "
            "questions before it is put to use, or calibrate on more text, and more like your own."
        )
    if kl > evaluation.nearest.kl:
        said += (
            " Plain rounding would have lost less here: the calibration text is too short or too "
            "unlike this one."
        )
    return f"{said} In {agreement:.0f} of 100 places it finds the same next token most likely."


def _by_site(sites: Sequence[SiteResult]) -> dict[str, list[SiteResult]]:
    by_site: dict[str, list[SiteResult]] = {}
    for result in sites:
        by_site.setdefault(result.site, []).append(result)
    return by_site


def _panel(site: str, results: Sequence[SiteResult]) -> SitePanel:
    pictures = [result.picture for result in results]
    name = SITE_NAMES.get(site, site)
    clipped = mean(picture.clipped for picture in pictures)
    return SitePanel(
        name=name,
        errors=line_chart(
            [
                Line(name="nearest", values=[result.error_nearest for result in results]),
                Line(name="scaled", values=[picture.error_scaled for picture in pictures]),
                Line(name="ranged", values=[picture.error_ranged for picture in pictures]),
                Line(name="written", values=[result.error for result in results]),
            ],
            [result.layer for result in results],
            label=f"Relative output error of the {name}, block by block, after each stage",
            x_title="block",
            is_log=True,
        ),
        weights=histogram(
            [mean(picture.histogram[index] for picture in pictures) for index in range(BINS)],
            low=mean(picture.low for picture in pictures),
            high=mean(picture.high for picture in pictures),
            label=f"Weights of the {name} relative to the largest of their group",
            x_title="weight / largest of its group",
        ),
        clipped=clipped,
    )


def _outliers(by_site: dict[str, list[SiteResult]]) -> Markup | None:
    """The loudest channel of each site over the median one, block by block."""
    layers = sorted({result.layer for results in by_site.values() for result in results})
    lines = [
        Line(name=site, values=[result.picture.channels[-1] for result in results])
        for site, results in by_site.items()
        if [result.layer for result in results] == layers
    ]
    if not lines:
        return None
    label = "The loudest input channel of each site over the median one, block by block"
    return line_chart(lines, layers, label=label, x_title="block", is_log=True)


def _positions(report: Report) -> Markup | None:
    if report.evaluation is None:
        return None
    points = report.evaluation.positions
    return line_chart(
        [
            Line(name="nearest", values=[point.nearest for point in points]),
            Line(name="written", values=[point.quantized for point in points]),
        ],
        [(point.first + point.last) / 2 for point in points],
        label="KL to the original model by the position of the token in its row, in nats",
        x_title="token",
    )
