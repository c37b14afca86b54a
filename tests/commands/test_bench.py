"""`bench` from the command line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from click.testing import CliRunner, Result

from awqkit_runtime.bench.random_weights import random_decoder
from awqkit_runtime.bench.scenarios import CPU_SCENARIOS, SCENARIOS
from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.cli import main
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.model_size import read_model_size
from awqkit_runtime.models.loader import LanguageModel
from tests.models.test_footprint import measured_bytes
from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), max_position_embeddings=256)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the machine in no time."""
    monkeypatch.setattr("awqkit_runtime.bench.machine._SECONDS", 0.01)
    monkeypatch.setattr("awqkit_runtime.bench.machine._READ_BYTES", {"cpu": 2**20})
    monkeypatch.setattr("awqkit_runtime.bench.machine._PRODUCT", {"cpu": (64, 64)})


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_rows_and_figures(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "figures.json"
    names = ("--scenario", "batch-1", "--scenario", "prefill-512")
    result = bench(model, *names, "--seconds", "1", "--json", out)
    assert result.exit_code == 0, result.stderr
    assert "batch-1" in result.stdout and "GB/s" in result.stdout
    assert "Skipped prefill-512: 512 tokens, the model takes 256." in result.stdout
    document = json.loads(out.read_text())
    assert {"command", "commit", "machine", "model"} <= set(document)
    assert {"processor", "threads", "torch", "python"} <= set(document["machine"])
    assert document["bandwidth_gb_per_s"] > 0 and list(document["skipped"]) == ["prefill-512"]
    (row,) = document["results"]
    assert row["scenario"]["name"] == "batch-1"
    assert row["tokens_per_s"] == pytest.approx(1000 / row["ms"])
    limits = (
        row["bytes"] / document["bandwidth_gb_per_s"],
        row["operations"] / document["giga_operations_per_s"],
    )
    assert row["limit_ms"] == pytest.approx(max(limits) / 1e6)


def test_all_scenarios_of_a_cpu_run_or_say_why_not(model: Path) -> None:
    result = bench(model, "--seconds", "2", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    for scenario in CPU_SCENARIOS:
        assert scenario.name in result.stdout


def test_what_is_too_large_for_model_and_memory_is_skipped(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awqkit_runtime.bench.runs.free_memory", lambda device: 10 * 2**20)
    names = ("--scenario", "batch-256", "--scenario", "batch-16-context-8000-int4")
    result = bench(model, *names, "--seconds", "2")
    assert result.exit_code == 0, result.stderr
    assert "Skipped batch-256: takes" in result.stdout
    assert "Skipped batch-16-context-8000-int4: 8001 tokens" in result.stdout


@pytest.mark.parametrize(
    ("family", "form"), [("internlm2", "hf"), ("gemma2", "awq"), ("qwen2_moe", "awq")]
)
def test_a_config_alone_is_enough_for_random_weights(
    tmp_path: Path, family: str, form: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(write_tiny_model(tmp_path / "full", family), folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    out = tmp_path / "figures.json"
    arguments = ("--scenario", "batch-1", "--seconds", "1", "--json", out)
    result = bench(folder, "--random-weights", "--model-format", form, *arguments)
    assert result.exit_code == 0, result.stderr
    document = json.loads(out.read_text())
    assert document["weights"] == "random" and document["results"][0]["ms"] > 0
    without = bench(folder, *arguments)
    assert without.exit_code == 1 and without.stderr.startswith("Error: ")


def test_random_weights_are_as_large_as_the_real_ones(tmp_path: Path) -> None:
    size = read_model_size(write_tiny_model(tmp_path)).other_form()
    placement = Placement(device=torch.device("cpu"), dtype=torch.bfloat16)
    decoder = random_decoder(size, placement)
    assert measured_bytes(decoder) == size.weights(placement)
    ids = torch.arange(20)[None]
    assert LanguageModel(decoder)(ids).isfinite().all()


@pytest.mark.parametrize("free", ["nothing", "enough for 4 bits"])
def test_random_weights_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: str
) -> None:
    folder = write_tiny_model(tmp_path)
    packed = read_model_size(folder).other_form()
    room = packed.weights(Placement(device=torch.device("cpu"), dtype=torch.bfloat16))
    room = room if free == "enough for 4 bits" else 1000
    monkeypatch.setattr("awqkit_runtime.bench.random_weights.free_memory", lambda device: room)
    with_weights = bench(folder, "--random-weights", "--dtype", "bfloat16")
    (folder / "model.safetensors").unlink()
    config_alone = bench(folder, "--random-weights", "--dtype", "bfloat16")
    assert with_weights.exit_code == config_alone.exit_code == 1
    assert "Choose a smaller shape." in with_weights.stderr
    assert ("--model-format=awq" in config_alone.stderr) == (free == "enough for 4 bits")


def test_the_list_needs_no_model() -> None:
    result = bench("--list")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == [s.name for s in SCENARIOS]


def test_stress_says_what_came_of_it(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "stress.json"
    result = bench(model, "--stress", "12", "--deterministic", "--json", out)
    assert result.exit_code == 0, result.stderr
    assert "12 requests" in result.stdout and "idle engine: 12 answers" in result.stdout
    document = json.loads(out.read_text())
    assert document["deterministic"] and document["stress"]["pages_not_back"] == 0
    assert document["quant_policy"] == 0


@pytest.mark.parametrize("policy", ["8", "4", "k8v4"])
def test_stress_of_a_quantized_cache(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    formats: list[PageFormat] = []
    pool = PagePool.__init__

    def noting(self: PagePool, page_format: PageFormat, *args: Any, **more: Any) -> None:
        formats.append(page_format)
        pool(self, page_format, *args, **more)

    monkeypatch.setattr(PagePool, "__init__", noting)
    out = tmp_path / "stress.json"
    arguments = ("--stress", "12", "--quant-policy", policy, "--json", out)
    result = bench(model, *arguments, "--deterministic")
    assert result.exit_code == 0, result.stderr
    assert str(json.loads(out.read_text())["quant_policy"]) == policy
    bits = {"8": (8, 8), "4": (4, 4), "k8v4": (8, 4)}[policy]
    assert {(one.k_bits, one.v_bits) for one in formats} == {bits}


def test_a_broken_promise_ends_with_an_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awqkit_runtime.bench.stress.longest_waits", lambda services: [(9, 8)])
    result = bench(model, "--stress", "3")
    assert result.exit_code == 1
    assert "Request 0 took 9 steps, 8 were allowed." in result.stderr


@pytest.mark.slow
def test_two_ranks_are_timed_and_stressed(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    arguments = ("--scenario", "batch-1", "--seconds", "5", "--json", out)
    result = bench(model, "--tp", "2", *arguments)
    assert result.exit_code == 0, result.stderr
    document = json.loads(out.read_text())
    assert document["tp"] == 2 and document["results"][0]["ms"] > 0
    result = bench(model, "--tp", "2", "--stress", "30")
    assert result.exit_code == 0 and "30 requests" in result.stdout


def test_mistakes(model: Path, tmp_path: Path) -> None:
    assert bench().exit_code == 2
    assert bench(model, "--scenario", "batch-7").exit_code == 2
    assert bench(model, "--seconds", "0").exit_code == 2
    assert bench(model, "--seconds", "nan").exit_code == 2
    for option, value in (("scenario", "batch-1"), ("seconds", "3"), ("max-prefill-tokens", "9")):
        result = bench(model, "--stress", "3", f"--{option}", value)
        assert result.exit_code == 2 and f"leave --{option} out" in result.stderr
    for options in (["--deterministic"], ["--quant-policy", "8"]):
        result = bench(model, *options)
        assert result.exit_code == 2 and f"{options[0]} belongs to --stress" in result.stderr
    random = bench(model, "--random-weights", "--tp", "2")
    assert random.exit_code == 1 and "--tp is 2" in random.stderr
    assert bench(model, "--stress", "3", "--tp", "2", "--deterministic").exit_code == 1
    assert bench(tmp_path / "missing").exit_code == 1


def test_a_place_without_room_for_the_figures_is_told_before_the_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "awqkit_runtime.bench.subject.load_subject", Mock(side_effect=AssertionError)
    )
    folder = bench(model, "--json", tmp_path)
    assert folder.exit_code == 1 and "is a folder" in folder.stderr
    file = tmp_path / "file"
    file.write_text("kept")
    for options in ((), ("--stress", "3")):
        below = bench(model, *options, "--json", file / "new" / "figures.json")
        assert below.exit_code == 1 and f"{file} is no folder to write into." in below.stderr
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    kept = bench(model, "--json", file)
    assert kept.exit_code == 1 and f"{file} is no file to write into." in kept.stderr
    new = bench(model, "--json", tmp_path / "figures.json")
    assert new.exit_code == 1 and f"{tmp_path} is no folder to write into." in new.stderr
    assert file.read_text() == "kept" and list(tmp_path.iterdir()) == [file]
