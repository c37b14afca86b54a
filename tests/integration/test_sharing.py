"""Conversions that several processes share, as a user starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit import QuantConfig, quantize
from awqkit.errors import ConfigError
from awqkit.progress import Silent
from awqkit.report import Report
from tests.calibration.calibration_tokenizers import byte_tokenizer
from tests.integration.test_resume import ROOT, digests
from tests.tiny_models import write_tiny_model
from tests.tokenizer_files import write_tokenizer

LAYERS = 2
SIZES = ["--calib-samples", "17", "--calib-seqlen", "32", "--batch-size", "2"]
CONFIG = QuantConfig(calib_samples=17, calib_seqlen=32, batch_size=2, lm_head="int4")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Experts, of which some see too few tokens to be judged by them."""
    folder = tmp_path_factory.mktemp("shared") / "model"
    shape = {"num_hidden_layers": LAYERS, "num_experts": 5, "shared_expert_intermediate_size": 128}
    write_tiny_model(folder, "qwen2_moe", dtype=torch.bfloat16, **shape)
    write_tokenizer(folder, byte_tokenizer())
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(f"The {n}th of the lines is about {n * n}." for n in range(900)))
    return path


@pytest.fixture(scope="module")
def expected(model: Path, text: Path, tmp_path_factory) -> dict[str, str]:
    """What one process gives."""
    out = tmp_path_factory.mktemp("alone") / "out"
    quantize(model, out, CONFIG, calib_dataset=str(text), device="cpu")
    return digests(out)


class Noted(Silent):
    def __init__(self) -> None:
        self.blocks: list[int] = []

    def block_done(self, layer: int) -> None:
        self.blocks.append(layer)


def shared(model: Path, out: Path, text: Path, processes: int, **settings: Any) -> Report:
    return quantize(
        model,
        out,
        CONFIG,
        calib_dataset=str(text),
        device="cpu",
        processes=processes,
        **settings,
    )


def start(model: Path, out: Path, text: Path) -> subprocess.Popen[str]:
    """A conversion by two processes, as far as its first block."""
    code = "import sys; sys.argv[0] = 'awqkit-convert'; from awqkit.cli import convert; convert()"
    options = ["--calib-dataset", str(text), *SIZES, "--lm-head", "int4", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(model), str(out), *options, "--processes", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    journal = out.parent / f".{out.name}.partial" / "journal" / "journal.json"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and '"blocks": 0' not in journal.read_text():
            break
        time.sleep(0.005)
    return process


def children(process: subprocess.Popen[str]) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    return sorted(map(int, listed.stdout.split()))


def test_one_that_is_killed_ends_all_and_resumed_they_give_the_bytes_of_one_process(
    model, text, expected, tmp_path
) -> None:
    process = start(model, tmp_path / "out", text)
    os.kill(children(process)[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    (paragraph,) = (line for line in errors.splitlines() if not line.startswith("block "))
    assert "Process 2 of the 2" in paragraph and f"1 of {LAYERS} blocks are done" in paragraph
    assert paragraph.endswith("--processes 2 --resume")
    progress = Noted()
    report = shared(model, tmp_path / "out", text, 2, resume=True, progress=progress)
    assert digests(tmp_path / "out") == expected
    assert progress.blocks == list(range(1, LAYERS))
    assert report.starved and report.evaluation is not None
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 5])
def test_undisturbed_ones_give_the_bytes_of_one(
    model, text, expected, tmp_path, processes: int
) -> None:
    shared(model, tmp_path / "out", text, processes)
    assert digests(tmp_path / "out") == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_stopped_one_is_gone_on_with(model, text, expected, tmp_path, number, code) -> None:
    process = start(model, tmp_path / "out", text)
    os.killpg(process.pid, number) if number != signal.SIGKILL else process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in errors
    assert (f"of {LAYERS} blocks are done and kept" in errors) == (number != signal.SIGKILL)
    shared(model, tmp_path / "out", text, 3, resume=True)
    assert digests(tmp_path / "out") == expected


def test_what_cannot_be_shared_is_refused(model, tmp_path) -> None:
    with pytest.raises(ConfigError, match="--quality best"):
        quantize(model, tmp_path / "out", QuantConfig(quality="best"), device="cpu", processes=2)
    with pytest.raises(ConfigError, match="--processes is 0"):
        quantize(model, tmp_path / "out", device="cpu", processes=0)
    assert list(tmp_path.iterdir()) == []
