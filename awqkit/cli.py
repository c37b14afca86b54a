"""awqkit-convert and awqkit-inspect."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

import awqkit.openmp  # noqa: F401  (before torch)
from awqkit.config import DTYPES, FORMATS, MATRIX_FORMS, QUALITIES, QuantConfig
from awqkit.console import paragraph_errors
from awqkit.interrupts import stops_held_back

DEFAULTS = {field.name: field.default for field in fields(QuantConfig)}


class SwitchWithValue(click.Command):
    """Accepts `--search-scale`, and `--search-scale True|False` as LMDeploy's users write it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _join_switch_values(args))


def _join_switch_values(args: list[str]) -> list[str]:
    joined: list[str] = []
    rest = iter(range(len(args)))
    for index in rest:
        switch, _, value = args[index].partition("=")
        if switch == "--search-scale" and not value and index + 1 < len(args):
            value = args[index + 1] if args[index + 1].lower() in ("true", "false") else ""
            if value:
                next(rest)
        if switch == "--search-scale" and value.lower() in ("true", "false"):
            joined.append("--search-scale" if value.lower() == "true" else "--no-search-scale")
        else:
            joined.append(args[index])
    return joined


@click.command(cls=SwitchWithValue, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--work-dir", type=click.Path(path_type=Path), help="The same as OUT.")
@click.option(
    "--calib-dataset",
    default="pileval",
    show_default=True,
    metavar="NAME|FILE|HUB-ID",
    help="pileval, c4, wikitext2; a .txt, .json, .jsonl, .jsonl.zst or .parquet file; a hub id; "
    "or self: text sampled from the model, which needs it whole in memory, but no network.",
)
@click.option(
    "--calib-samples",
    default=DEFAULTS["calib_samples"],
    show_default=True,
    help="Samples to calibrate on.",
)
@click.option(
    "--calib-seqlen",
    default=DEFAULTS["calib_seqlen"],
    show_default=True,
    help="Tokens a sample.",
)
@click.option("--batch-size", default="auto", show_default=True, help="Samples at once.")
@click.option(
    "--w-bits", default=DEFAULTS["w_bits"], show_default=True, help="Bits a weight; only 4."
)
@click.option(
    "--w-group-size",
    default=DEFAULTS["w_group_size"],
    show_default=True,
    help="Weights that share a scale; only 128.",
)
@click.option(
    "--search-scale/--no-search-scale",
    default=DEFAULTS["search_scale"],
    show_default=True,
    help="Search AWQ scales; also takes True or False.",
)
@click.option(
    "--quality",
    type=click.Choice(QUALITIES),
    default=DEFAULTS["quality"],
    show_default=True,
    help="fast: scales, ranges and second-order rounding; balanced: also aimed at the unquantized "
    "model's outputs; best: then all codes tuned together, with the whole model in memory.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default=DEFAULTS["format"],
    show_default=True,
    help="How the integers lie on disk; the same in both.",
)
@click.option(
    "--lm-head",
    type=click.Choice(MATRIX_FORMS),
    default=DEFAULTS["lm_head"],
    show_default=True,
    help="int8, int4: quantize the output head too, rounded to nearest; int8 in compressed-tensors "
    "form alone.",
)
@click.option(
    "--embeddings",
    type=click.Choice(MATRIX_FORMS),
    default=DEFAULTS["embeddings"],
    show_default=True,
    help="int8, int4: quantize the embedding too, and the head with it where one matrix is both; "
    "in compressed-tensors form alone.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default=DEFAULTS["dtype"],
    show_default=True,
    help="Of what stays unquantized.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|cuda:N",
    help="auto: a GPU where there is one.",
)
@click.option(
    "--processes",
    default=1,
    show_default=True,
    help="Processes that share the calibration rows, each on a GPU of its own; the result stays "
    "the same, byte for byte.",
)
@click.option(
    "--seed",
    default=DEFAULTS["seed"],
    show_default=True,
    help="Of the choice of samples; the same seed gives the same checkpoint.",
)
@click.option(
    "--evaluate/--no-evaluate",
    default=DEFAULTS["evaluate"],
    show_default=True,
    help="Measure perplexity and KL on rows held out from the calibration.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Also write the report as a page.",
)
@click.option(
    "--resume/--no-resume",
    default=None,
    help="Go on where the same command was stopped, or drop what it did; with neither, a stopped "
    "conversion is an error that says so.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@click.version_option(package_name="awqkit")
@paragraph_errors
def convert(
    model: str,
    out: Path | None,
    work_dir: Path | None,
    calib_dataset: str,
    batch_size: str,
    format_: str,
    device: str,
    processes: int,
    report: Path | None,
    dry_run: bool,
    resume: bool | None,
    **settings: Any,
) -> None:
    """Quantize MODEL (a Hugging Face folder or hub id) to 4 bits and write it to OUT.

    An int4 checkpoint as MODEL is repacked into another --format without loss.
    """
    with stops_held_back():  # torch and numpy do not survive Ctrl-C while they are imported
        from awqkit import conversion

    if (out is None) == (work_dir is None):
        raise click.UsageError("Give the output folder once: as OUT, or with --work-dir.")
    config = QuantConfig(format=format_, batch_size=_batch_size(batch_size), **settings)  # type: ignore[arg-type]
    target = out or work_dir
    assert target is not None
    conversion.run(
        model,
        target,
        config,
        calib_dataset=calib_dataset,
        device=device,
        processes=processes,
        html=report,
        dry_run=dry_run,
        resume=resume,
    )


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise click.BadParameter(
            f"{text!r} is neither auto nor a number of samples.", param_hint="'--batch-size'"
        )
    return int(text)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path")
@click.version_option(package_name="awqkit")
@paragraph_errors
def inspect(path: str) -> None:
    """Say what the checkpoint at PATH is: format, shapes, sizes, and its report's figures."""
    with stops_held_back():
        from awqkit import inspection

    inspection.show(path)
