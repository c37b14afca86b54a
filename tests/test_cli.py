"""awqkit-convert and awqkit-inspect as a user types them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from awqkit.checkpoint import open_checkpoint
from awqkit.cli import convert, inspect
from tests.calibration.calibration_tokenizers import byte_tokenizer
from tests.tiny_models import write_tiny_model
from tests.tokenizer_files import write_tokenizer

SELF = ["--calib-dataset", "self", "--calib-samples", "8", "--calib-seqlen", "32"]


def run(command, *args: object) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = write_tiny_model(tmp_path_factory.mktemp("cli") / "model", dtype=torch.bfloat16)
    write_tokenizer(folder, byte_tokenizer())
    return folder


def assert_one_paragraph(result: Result, *texts: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1
    for text in texts:
        assert text in result.stderr


@pytest.mark.parametrize("as_option", [False, True])
def test_converts_and_says_what_it_did(model, tmp_path, as_option: bool) -> None:
    out, page = tmp_path / "out", tmp_path / "report.html"
    where = ["--work-dir", out] if as_option else [out]
    result = run(convert, model, *where, *SELF, "--report", page)
    assert result.exit_code == 0, result.output
    assert "times smaller" in result.stdout and "KL to the original" in result.stdout
    assert str(page) in result.stdout
    assert open_checkpoint(out).format == "awq"
    assert "<svg" in page.read_text() and "model" in page.read_text()


def test_text_without_a_row_to_spare_is_told_of(model, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A line of no great length. " * 5)
    sizes = ["--calib-samples", 4, "--calib-seqlen", 32]
    result = run(convert, model, tmp_path / "out", "--calib-dataset", text, *sizes)
    assert result.exit_code == 0, result.output
    assert "Not compared with the original" in result.stdout


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "Missing argument"),
        (["m"], "OUT, or with --work-dir"),
        (["m", "o", "--work-dir", "w"], "OUT, or with --work-dir"),
        (["m", "o", "--format", "gguf"], "gguf"),
        (["m", "o", "--batch-size", "many"], "neither auto nor a number"),
        (["m", "o", "--no-such-option"], "No such option"),
    ],
)
def test_usage_errors_exit_with_2(args, text: str) -> None:
    result = run(convert, *args)
    assert result.exit_code == 2
    assert text in result.stderr


@pytest.mark.parametrize(
    ("args", "scaled"),
    [
        (["--search-scale"], True),
        (["--search-scale", "True"], True),
        (["--search-scale", "False"], False),
        (["--search-scale=false"], False),
        (["--no-search-scale"], False),
        ([], True),
    ],
)
def test_search_scale_takes_every_spelling(model, tmp_path, args, scaled: bool) -> None:
    result = run(convert, *args, model, tmp_path / "out", *SELF, "--no-evaluate")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "awqkit_report.json").read_text())
    assert report["config"]["search_scale"] is scaled
    assert report["evaluation"] is None
    if not scaled:
        assert all(site["scale"] == "identity" for site in report["sites"])


def test_repacks_without_loss_and_back(model, tmp_path) -> None:
    first, second, third = (tmp_path / name for name in "abc")
    assert run(convert, model, first, *SELF, "--no-evaluate").exit_code == 0
    result = run(convert, first, second, "--format", "compressed-tensors")
    assert result.exit_code == 0, result.output
    assert run(convert, second, third, "--format", "awq").exit_code == 0
    assert (first / "model.safetensors").read_bytes() == (third / "model.safetensors").read_bytes()
    assert_one_paragraph(run(convert, first, tmp_path / "d"), "awq", "--format")
    page = ["--format", "compressed-tensors", "--report", tmp_path / "page.html"]
    assert_one_paragraph(run(convert, first, tmp_path / "d", *page), "Leave --report out")


def test_results_are_named_as_the_user_named_them(model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Written new/a\nReport  new/a/" in run(convert, model, "new/a", *SELF).stdout
    repacked = run(convert, "new/a", "b", "--format", "compressed-tensors")
    assert repacked.stdout == "Written to b\n"


def test_repacking_keeps_the_report(model, tmp_path) -> None:
    run(convert, model, tmp_path / "a", *SELF)
    run(convert, tmp_path / "a", tmp_path / "b", "--format", "compressed-tensors")
    result = run(inspect, tmp_path / "b")
    assert result.exit_code == 0
    assert "compressed-tensors" in result.stdout and "KL" in result.stdout


def test_dry_run_writes_nothing(model, tmp_path) -> None:
    result = run(convert, model, tmp_path / "out", "--dry-run", "--calib-seqlen", 32)
    assert result.exit_code == 0
    assert "dry run" in result.stdout and "pileval" in result.stdout
    assert re.search(r"^Time +\d+:\d\d:\d\d \([^)]*\bmoments \d+ s", result.stdout, re.M)
    assert re.search(r"^Peak +\d+\.\d [MG]iB memory$", result.stdout, re.M)
    assert not list(tmp_path.iterdir())


def test_planned_bytes_are_the_bytes_written(model, tmp_path) -> None:
    from awqkit import QuantConfig
    from awqkit.planning import planned_bytes

    planned = planned_bytes(open_checkpoint(model), QuantConfig())
    assert run(convert, model, tmp_path / "out", *SELF, "--no-evaluate").exit_code == 0
    assert open_checkpoint(tmp_path / "out").weight_bytes() == planned


def test_mistakes_are_one_paragraph(model, tmp_path) -> None:
    out = tmp_path / "out"
    assert_one_paragraph(run(convert, tmp_path / "nowhere", out, *SELF), "nowhere")
    assert_one_paragraph(run(convert, model, out, "--w-bits", 8), "--w-bits", "4-bit")
    dead = ["--calib-dataset", "ptb", "--calib-seqlen", 64]
    assert_one_paragraph(run(convert, model, out, *dead), "ptb.train.txt")
    assert_one_paragraph(
        run(convert, model, out, "--calib-dataset", "self", "--calib-seqlen", 4096), "512"
    )
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "file").write_text("mine")
    assert_one_paragraph(run(convert, model, occupied, *SELF), "occupied")
    assert_one_paragraph(run(convert, model, out, *SELF, "--device", "tpu"), "tpu")
    assert_one_paragraph(run(inspect, tmp_path / "nowhere"), "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["occupied"]


def test_report_that_cannot_be_written_is_refused_before_the_work(model, tmp_path) -> None:
    page = tmp_path / "missing" / "report.html"
    assert_one_paragraph(run(convert, model, tmp_path / "out", *SELF, "--report", page), "--report")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes_is_refused(model, tmp_path, seed: int) -> None:
    result = run(convert, model, tmp_path / "out", *SELF, "--seed", seed)
    assert_one_paragraph(result, f"--seed is {seed}", "2^63")
    assert not (tmp_path / "out").exists()


def test_every_option_is_explained() -> None:
    options = [
        p for command in (convert, inspect) for p in command.params if p.param_type_name == "option"
    ]
    assert options and all(option.help for option in options)


def test_inspect_says_what_a_plain_model_is(model) -> None:
    result = run(inspect, model)
    assert result.exit_code == 0
    assert "blocks    2," in result.stdout and "0 of 14 linears" in result.stdout


def test_interrupt_ends_quietly_and_leaves_nothing(model, tmp_path) -> None:
    code = "import sys; from awqkit.cli import convert; convert(sys.argv[1:])"
    long = ["--calib-dataset", "self", "--calib-samples", "64", "--calib-seqlen", "512"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(model), str(tmp_path / "out"), *long],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    assert "Sampling" in process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in errors and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_interrupt_while_libraries_are_imported_ends_quietly(model, tmp_path) -> None:
    code = (
        "import sys; from awqkit.cli import convert; print('begun', flush=True); "
        "convert(sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(model), str(tmp_path / "out"), *SELF],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in errors and "Traceback" not in errors
    assert not list(tmp_path.iterdir())
