"""--dry-run finds what would stop a conversion, and writes nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from awqkit import dry_run
from awqkit.cli import convert
from tests.calibration.calibration_tokenizers import byte_tokenizer
from tests.tiny_models import write_tiny_model
from tests.tokenizer_files import write_tokenizer

SIZES = ["--calib-samples", "9", "--calib-seqlen", "32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dry") / "model"
    write_tiny_model(folder, dtype=torch.bfloat16, max_shard_size="200KB")
    write_tokenizer(folder, byte_tokenizer())
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"Line {n} is about {n * n}." for n in range(400)))
    return path


def try_out(model: Path, out: Path, *args: object) -> Result:
    arguments = [str(arg) for arg in (model, out, "--dry-run", "--device", "cpu", *args)]
    return CliRunner().invoke(convert, arguments)


def assert_refused(result: Result, *texts: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ") and len(result.stderr.strip().splitlines()) == 1
    for text in texts:
        assert text in result.stderr


def test_sound_command_is_described_and_nothing_is_written(model, text, tmp_path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    result = try_out(model, tmp_path / "new" / "out", "--calib-dataset", text, *SIZES)
    assert result.exit_code == 0, result.output
    assert "2 blocks" in result.stdout and "dry run" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_text_that_is_too_short_or_unreadable(model, text, tmp_path) -> None:
    out, dataset = tmp_path / "out", ["--calib-dataset", text]
    assert_refused(try_out(model, out, *dataset, "--calib-seqlen", 512), "too short")
    text.write_bytes(b"\xff\xfe\xfa" * 100)
    assert_refused(try_out(model, out, *dataset, *SIZES), "UTF-8")
    assert_refused(try_out(model, out, "--calib-dataset", tmp_path / "none.txt"), "does not exist")
    assert_refused(try_out(model, out, "--calib-dataset", "ptb", *SIZES), "ptb")


@pytest.mark.parametrize("dataset", ["self", "pileval"])
def test_rows_longer_than_the_model(model, tmp_path, dataset: str) -> None:
    result = try_out(model, tmp_path / "out", "--calib-dataset", dataset, "--calib-seqlen", 513)
    assert_refused(result, "--calib-seqlen 512")


def test_disk_without_room(model, tmp_path, monkeypatch) -> None:
    usage = type("Usage", (), {"free": 400_000})
    monkeypatch.setattr(dry_run.shutil, "disk_usage", lambda path: usage)
    result = try_out(model, tmp_path / "out", "--calib-dataset", "self", *SIZES)
    assert_refused(result, "disk is too full", "390.6 KiB are free")


def test_occupied_output_and_one_below_a_file(model, text, tmp_path) -> None:
    assert_refused(try_out(model, tmp_path, "--calib-dataset", "self", *SIZES), "already holds")
    result = try_out(model, text / "out", "--calib-dataset", "self", *SIZES)
    assert_refused(result, str(text))


@pytest.mark.parametrize("harm", [lambda path: os.truncate(path, 5000), Path.unlink])
def test_missing_and_truncated_files(model, tmp_path, harm) -> None:
    folder = shutil.copytree(model, tmp_path / "harmed")
    shard = max(folder.glob("*.safetensors"))
    harm(shard)
    result = try_out(folder, tmp_path / "out", "--calib-dataset", "self", *SIZES)
    assert_refused(result, shard.name)


def test_broken_tokenizer(model, text, tmp_path) -> None:
    folder = shutil.copytree(model, tmp_path / "harmed")
    (folder / "tokenizer.json").write_text("{}")
    for dataset in ("self", text):
        result = try_out(folder, tmp_path / "out", "--calib-dataset", dataset, *SIZES)
        assert_refused(result, "tokenizer")


def test_leftover_is_mentioned(model, tmp_path) -> None:
    (tmp_path / ".out.partial").mkdir()
    result = try_out(model, tmp_path / "out", "--calib-dataset", "self", *SIZES)
    assert result.exit_code == 0 and "--resume" in result.stdout
