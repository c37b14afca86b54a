"""What awqkit-convert does: quantize or repack, with a progress bar before and tables after."""

from __future__ import annotations

import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.table import Table

from awqkit.checkpoint import Checkpoint, open_checkpoint, refuse_occupied, write_checkpoint
from awqkit.checkpoint.canonical import in_written_order
from awqkit.config import QuantConfig
from awqkit.console import human_bytes
from awqkit.device import rank_devices
from awqkit.dry_run import check_output, check_text, check_tokenizer, has_leftover
from awqkit.errors import ConfigError, QuantizationError
from awqkit.forecast import Forecast, forecast
from awqkit.pipeline import check_shareable, quantize
from awqkit.planning import check_quantizable, planned_bytes
from awqkit.progress_bar import ProgressBar
from awqkit.report import REPORT_NAME, Report, refuse_unwritable
from awqkit.report_page import NOTHING_HELD_OUT, write_html
from awqkit.vocabulary import check_repackable, check_vocabulary

#: Of rounding, as RoundedLinear names them; the table counts the sites that kept each.
STAGES = ("second-order", "corrected", "joint")


def run(
    model: str,
    output: Path,
    config: QuantConfig,
    *,
    calib_dataset: str,
    device: str,
    processes: int,
    html: Path | None,
    dry_run: bool,
    resume: bool | None,
) -> None:
    """Quantize model into output, or repack it where it is quantized already."""
    console = Console(stderr=True)
    if not resume:
        refuse_occupied(output)
    if html is not None:
        refuse_unwritable(html)
    checkpoint = open_checkpoint(model)
    if checkpoint.format != "hf":
        if html is not None:
            raise ConfigError(
                f"{checkpoint.folder} is quantized already, and repacking it changes nothing that "
                "--report could tell of. Leave --report out."
            )
        repack(checkpoint, output, config, console, dry_run=dry_run)
        return
    if dry_run:
        show_plan(checkpoint, output, config, calib_dataset, rank_devices(device, processes))
        return
    with _offering_resume(), ProgressBar(console) as progress:
        report = quantize(
            model,
            output,
            config,
            calib_dataset=calib_dataset,
            device=device,
            processes=processes,
            progress=progress,
            resume=resume,
        )
    if html is not None:
        write_html(report, html)
    show_report(report, output, html)


@contextmanager
def _offering_resume() -> Iterator[None]:
    """Where something stops the conversion and its work is kept, name the command that goes on."""
    try:
        yield
    except BaseException as error:
        if getattr(error, "__notes__", ()):  # they say what was kept
            error.add_note(f"To go on: {resuming_command(sys.argv)}")
        raise


def resuming_command(arguments: Sequence[str]) -> str:
    """The command line that the process was started with, with --resume."""
    program, *options = arguments
    kept = [option for option in options if option not in ("--resume", "--no-resume")]
    return shlex.join([Path(program).name, *kept, "--resume"])


def repack(
    checkpoint: Checkpoint, output: Path, config: QuantConfig, console: Console, *, dry_run: bool
) -> None:
    """Write the same integers in another format."""
    if checkpoint.format == config.format:
        raise QuantizationError(
            f"{checkpoint.folder} is an int4 checkpoint in {config.format} form already; "
            "give another --format to repack it, or the original model to quantize."
        )
    check_repackable(checkpoint, config)
    console.print(f"Repacking {checkpoint.format} → {config.format}, without loss.")
    if dry_run:
        check_output(checkpoint, config, output)
        check_tokenizer(checkpoint)
        Console().print(f"Output    {output}. Nothing was written: this was a dry run.")
    else:
        write_checkpoint(
            output,
            ((name, checkpoint.weight(name)) for name in in_written_order(checkpoint.names())),
            source=checkpoint,
            format=config.format,
            documents=_carried_report(checkpoint.folder),
        )
        Console().print(f"Written to {output}", soft_wrap=True)


def _carried_report(folder: Path) -> dict[str, str]:
    """The report of the quantization that made these integers, by its name, where there is one."""
    path = folder / REPORT_NAME
    return {REPORT_NAME: path.read_text(encoding="utf-8")} if path.is_file() else {}


def show_plan(
    checkpoint: Checkpoint,
    output: Path,
    config: QuantConfig,
    calib_dataset: str,
    devices: Sequence[torch.device],
) -> None:
    """Say what a run would do and take, or raise what would stop it."""
    check_shareable(config, len(devices))
    unquantized = check_quantizable(checkpoint)
    check_vocabulary(checkpoint, config)
    check_output(checkpoint, config, output)
    check_tokenizer(checkpoint)
    check_text(checkpoint, config, calib_dataset)
    console = Console()
    before, after = checkpoint.weight_bytes(), planned_bytes(checkpoint, config)
    decoder = checkpoint.config
    console.print(f"Model     {checkpoint.folder}: {decoder.num_layers} blocks")
    console.print(f"Weights   {human_bytes(before)} → {human_bytes(after)} ({config.format})")
    console.print(
        f"Text      {calib_dataset}, {config.calib_samples} × {config.calib_seqlen} tokens"
    )
    if unquantized:
        console.print(f"Stay {config.dtype}: {', '.join(unquantized)}")
    if has_leftover(output):
        console.print("Beside    a stopped conversion, for --resume or --no-resume to decide about")
    expected = forecast(
        checkpoint,
        config,
        calib_dataset=calib_dataset,
        device=devices[0],
        processes=len(devices),
    )
    _show_forecast(console, expected)
    console.print(f"Output    {output}. Nothing was written: this was a dry run.")


def _show_forecast(console: Console, expected: Forecast) -> None:
    total = sum(expected.seconds.values())
    stages = ", ".join(f"{stage} {took:.0f} s" for stage, took in expected.seconds.items())
    console.print(f"Time      {timedelta(seconds=round(total))} ({stages})")
    if not expected.text_is_counted:
        console.print("          and what it takes to fetch the text")
    peaks = (f"{human_bytes(count)} {kind}" for kind, count in expected.peak_bytes.items())
    console.print(f"Peak      {', '.join(peaks)}")


def show_report(report: Report, output: Path, html: Path | None) -> None:
    """Print what was done: sites, sizes, scores, seconds; paths as they were given."""
    console = Console()
    console.print(_site_table(report))
    if report.evaluation is not None:
        console.print(_score_table(report))
    elif report.config.evaluate:
        console.print(f"Not compared with the original: {NOTHING_HELD_OUT}.")
    before, after = report.bytes_before, report.bytes_after
    console.print(
        f"Weights {human_bytes(before)} → {human_bytes(after)} on disk and in memory"
        + (f" ({before / after:.2f} times smaller)" if after < before else "")
    )
    if report.unquantized:
        console.print(
            f"Linears left in {report.config.dtype}, as groups of {report.config.w_group_size} do "
            f"not divide them: {len(report.unquantized)} ({_shortened(report.unquantized)})"
        )
    if report.starved:
        console.print(
            "Experts with too few calibration tokens, quantized for the tokens of all experts "
            f"instead: {len(report.starved)} ({_shortened(report.starved)}). "
            "More --calib-samples reach more experts."
        )
    if report.seconds:  # None where an earlier run had done it all.
        console.print("Time    " + ", ".join(f"{k} {v:.1f} s" for k, v in report.seconds.items()))
    console.print(f"Written {output}", soft_wrap=True)
    console.print(f"Report  {html or output / REPORT_NAME}", soft_wrap=True)


def _site_table(report: Report) -> Table:
    table = Table(title="Output error by site, relative, on judging rows", title_justify="left")
    for column in ("site", "nearest", "quantized", "scaled", *STAGES):
        table.add_column(column, justify="left" if column == "site" else "right")
    by_site = defaultdict(list)
    for result in report.sites:
        by_site[result.site].append(result)
    for site, results in by_site.items():
        table.add_row(
            site,
            f"{mean(r.error_nearest for r in results):.2e}",
            f"{mean(r.error for r in results):.2e}",
            f"{sum(r.scale != 'identity' for r in results)}/{len(results)}",
            *(f"{sum(stage in r.kept for r in results)}/{len(results)}" for stage in STAGES),
        )
    return table


def _score_table(report: Report) -> Table:
    evaluation = report.evaluation
    assert evaluation is not None
    title = f"On {evaluation.tokens} tokens held out from the calibration text"
    table = Table(title=title, title_justify="left")
    for column in ("model", "perplexity", "KL to the original (nats)"):
        table.add_column(column, justify="left" if column == "model" else "right")
    table.add_row("original", f"{evaluation.original.perplexity:.3f}", "")
    for name, score in (
        ("round to nearest", evaluation.nearest),
        ("quantized", evaluation.quantized),
    ):
        table.add_row(name, f"{score.perplexity:.3f}", f"{score.kl:.5f}")
    table.caption = f"{evaluation.gap_closed:.0%} of round-to-nearest's KL is gone"
    if evaluation.gap_closed < 0:
        table.caption = "More was lost than by rounding to nearest: give more calibration text"
    return table


def _shortened(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown}, …"
