"""Conversions that are stopped, killed or tampered with, and what --resume makes of them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit import QuantConfig, quantize
from awqkit import journal as journal_module
from awqkit.errors import OutputError, QuantizationError, ResumeError
from awqkit.report import Report
from awqkit.run import Run
from tests.calibration.calibration_tokenizers import byte_tokenizer
from tests.checkpoint.folders import edit_config, edit_tensors
from tests.tiny_models import write_tiny_model
from tests.tokenizer_files import write_tokenizer

ROOT = Path(__file__).parents[2]
LAYERS = 3
SITES = 3 * LAYERS
PROSE = " ".join(f"The {n}th of the lines is about the number {n * n}." for n in range(900))
SMALL = QuantConfig(calib_samples=9, calib_seqlen=32, quality="fast")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "model"
    # Heads of odd width: some tensors then wait for the end of their file, and o_proj stays dense.
    write_tiny_model(
        folder,
        "qwen3",
        num_hidden_layers=LAYERS,
        num_key_value_heads=4,
        head_dim=34,
        dtype=torch.bfloat16,
    )
    write_tokenizer(folder, byte_tokenizer())
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(PROSE)
    return path


@pytest.fixture(scope="module")
def leftover(model: Path, text: Path, tmp_path_factory) -> Path:
    """What a conversion leaves that was stopped after two blocks."""
    out = tmp_path_factory.mktemp("leftover") / "out"
    stop(model, out, str(text), blocks=2)
    return out.with_name(".out.partial")


@pytest.fixture
def out(leftover: Path, tmp_path: Path) -> Path:
    """An output folder that does not exist yet, with a copy of the leftover beside it."""
    shutil.copytree(leftover, tmp_path / ".out.partial")
    return tmp_path / "out"


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def convert_args(model: Path, out: Path, text: Path, *more: str) -> list[str]:
    calibration = ["--calib-dataset", str(text), "--calib-samples", "9", "--calib-seqlen", "32"]
    return [str(model), str(out), *calibration, "--device", "cpu", *more]


def run_jobs(jobs: Sequence[dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    """Each job's end: signal 9 where it was killed, else the exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.killable"],
        input=json.dumps([{"kill_at": None, "root": str(root), **job} for job in jobs]),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def storm(model: Path, tmp_path: Path, text: Path, *, kills: int, seed: int, quality: str) -> None:
    """Kill at random events, and again while resuming now and then; then let it come to its end."""
    draw, options = random.Random(seed), ("--quality", quality)
    (undisturbed,) = run_jobs(
        [{"args": convert_args(model, tmp_path / "whole", text, *options)}], tmp_path
    )
    assert undisturbed["code"] == 0, undisturbed["text"]
    expected = digests(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")
    jobs, last = [], []
    for number in range(kills):
        out = tmp_path / str(number) / "whole"
        out.parent.mkdir()
        args = convert_args(model, out, text, "--resume", *options)
        chosen = sorted(draw.sample(range(1, undisturbed["events"] + 1), draw.choice((1, 1, 2))))
        jobs += [{"args": args, "kill_at": event} for event in chosen] + [{"args": args}]
        last.append(len(jobs) - 1)
    ends = run_jobs(jobs, tmp_path)
    assert sum(end["signal"] == signal.SIGKILL for end in ends) >= kills
    for number, index in enumerate(last):
        assert ends[index]["code"] == 0, ends[index]["text"]
        assert digests(tmp_path / str(number) / "whole") == expected, jobs[index - 1]
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["whole"]


def test_killed_anywhere_and_resumed_gives_the_same_bytes(model, tmp_path, text) -> None:
    storm(model, tmp_path, text, kills=2, seed=1, quality="fast")


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(2, 4))
def test_storm_of_kills(model, tmp_path, text, seed: int) -> None:
    storm(model, tmp_path, text, kills=20, seed=seed, quality="balanced")


class Stop(Exception):
    """What stops a conversion in these tests."""


def stop_after(monkeypatch: pytest.MonkeyPatch, blocks: int, error: BaseException) -> None:
    """Let conversions in this process save after every block, and stop behind `blocks` of them."""
    monkeypatch.setattr(journal_module, "SAVING_SHARE", float("inf"))
    real = Run.next_block

    def next_block(self: Run):
        if self.blocks == blocks:
            raise error
        return real(self)

    monkeypatch.setattr(Run, "next_block", next_block)


def stop(model: Path, out: Path, dataset: str, *, blocks: int) -> None:
    """Convert until some blocks are done."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, blocks, Stop())
        with pytest.raises(Stop):
            quantize(model, out, SMALL, calib_dataset=dataset, device="cpu")


def resume(model: Path, out: Path, dataset: Path | str, **settings: Any) -> Report:
    return quantize(
        model, out, config(**settings), calib_dataset=str(dataset), device="cpu", resume=True
    )


def config(**settings: Any) -> QuantConfig:
    return QuantConfig(**{"calib_samples": 9, "calib_seqlen": 32, "quality": "fast", **settings})


def test_resumes_text_sampled_from_the_model_without_sampling_again(
    model, tmp_path, monkeypatch
) -> None:
    quantize(model, tmp_path / "whole", SMALL, calib_dataset="self", device="cpu")
    stop(model, tmp_path / "out", "self", blocks=1)
    monkeypatch.setattr("awqkit.calibration.rows.sampled_rows", None)
    report = resume(model, tmp_path / "out", "self")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert len(report.sites) == SITES and report.seconds["moments"] > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quality": "balanced"}, "--quality was 'fast' and is 'balanced' now"),
        ({"seed": 7}, "--seed was 0 and is 7 now"),
        ({"format": "compressed-tensors"}, "--format"),
        ({"evaluate": False}, "--evaluate"),
        (
            {"embeddings": "int8", "format": "compressed-tensors"},
            "--embeddings was 'dense' and is 'int8' now",
        ),
        ({"batch_size": 2}, "--batch-size"),
    ],
)
def test_changed_option_is_refused_by_name(model, out, text, settings, said) -> None:
    before = digests(out.parent)
    with pytest.raises(ResumeError, match=said) as caught:
        resume(model, out, text, **settings)
    assert "--no-resume" in str(caught.value)
    assert digests(out.parent) == before


def test_changed_calibration_text_is_refused(model, out, text) -> None:
    try:
        text.write_text("Something else. " + PROSE)
        with pytest.raises(ResumeError, match="SHA-256 of the calibration tokens"):
            resume(model, out, text)
    finally:
        text.write_text(PROSE)
    with pytest.raises(ResumeError, match="--calib-dataset was"):
        resume(model, out, "self")


def _retrained(folder: Path) -> None:
    def shift(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.2.mlp.up_proj.weight"] += 0.01

    edit_tensors(folder, shift)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: edit_config(folder, rms_norm_eps=1e-5), "the source's config.json"),
        (_retrained, "the source's model.safetensors"),
    ],
)
def test_changed_source_is_refused(model, out, text, change, said) -> None:
    source = shutil.copytree(model, out.parent / "other" / "model")
    change(source)
    with pytest.raises(ResumeError, match=said):
        resume(source, out, text)


def test_leftover_is_neither_taken_nor_dropped_unasked(model, out, text) -> None:
    before = digests(out.parent)
    with pytest.raises(ResumeError, match=r"2 of 3 blocks.*--resume.*--no-resume"):
        quantize(model, out, SMALL, calib_dataset=str(text), device="cpu")
    assert digests(out.parent) == before
    quantize(model, out, config(seed=4), calib_dataset=str(text), device="cpu", resume=False)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_stop_before_the_first_block_leaves_nothing_to_choose(model, tmp_path, text) -> None:
    stop(model, tmp_path / "out", str(text), blocks=0)
    assert list(tmp_path.iterdir()) == []


def test_resuming_what_is_complete_already_changes_nothing(model, out, text) -> None:
    # A process that is killed between putting the result in place and its end leaves this.
    resume(model, out, text)
    before = digests(out)
    assert len(resume(model, out, text).sites) == SITES
    assert digests(out) == before
    with pytest.raises(OutputError, match="already holds something"):
        resume(model, out, text, seed=1)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1500] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [_cut, _flip, Path.unlink])
@pytest.mark.parametrize(
    "name", ["checkpoint/shard-0.safetensors", "journal/streams-2.safetensors"]
)
def test_damaged_leftover_is_refused_by_name(model, out, text, harm, name) -> None:
    harm(out.with_name(".out.partial") / name)
    with pytest.raises(ResumeError, match=Path(name).name) as caught:
        resume(model, out, text)
    assert "--no-resume" in str(caught.value)
    assert out.with_name(".out.partial").is_dir()


def test_damaged_journal_is_refused(model, out, text) -> None:
    _cut(out.with_name(".out.partial") / "journal" / "journal.json")
    with pytest.raises(ResumeError, match=r"journal\.json"):
        resume(model, out, text)


def test_error_on_the_way_says_that_the_work_is_kept(model, tmp_path, text, monkeypatch) -> None:
    stop_after(monkeypatch, 1, OutputError("The disk is full."))
    with pytest.raises(OutputError) as caught:
        quantize(model, tmp_path / "out", SMALL, calib_dataset=str(text), device="cpu")
    assert "1 of 3 blocks are done and kept" in " ".join(caught.value.__notes__)
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_full_memory_is_a_paragraph_and_the_work_is_kept(
    model, tmp_path, text, monkeypatch, error
) -> None:
    stop_after(monkeypatch, 1, error)
    with pytest.raises(QuantizationError, match=r"memory of cpu is full.*--batch-size") as caught:
        quantize(model, tmp_path / "out", SMALL, calib_dataset=str(text), device="cpu")
    assert "1 of 3 blocks are done and kept" in " ".join(caught.value.__notes__)


def test_journal_holds_no_pickles(leftover) -> None:
    names = {path.name for path in (leftover / "journal").iterdir()}
    assert names == {"journal.json", "calibration.safetensors", "streams-2.safetensors"}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_signals_keep_the_work_and_name_the_command(model, tmp_path, text, number, code) -> None:
    script = (
        "import sys\nfrom awqkit import cli, journal\n"
        "journal.SAVING_SHARE = float('inf')\nsys.argv[0] = '/somewhere/awqkit-convert'\n"
        "cli.convert()"
    )
    slow = ["--calib-samples", "256", "--calib-seqlen", "64"]
    args = convert_args(model, tmp_path / "out", text, *slow)
    process = subprocess.Popen(
        [sys.executable, "-c", script, *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    journal = tmp_path / ".out.partial" / "journal" / "journal.json"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and '"blocks": 1' in journal.read_text():
            break
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert "awqkit-convert" in errors and errors.rstrip().endswith("--resume")
    assert f"of {LAYERS} blocks are done and kept" in errors
