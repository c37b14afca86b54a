"""`bench` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from awqkit_runtime.bench.scenarios import SCENARIOS
from awqkit_runtime.cli import main
from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), max_position_embeddings=256)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the machine in no time."""
    monkeypatch.setattr("awqkit_runtime.bench.machine._SECONDS", 0.01)
    monkeypatch.setattr("awqkit_runtime.bench.machine._READ_BYTES", 2**20)


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_rows_and_figures(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "figures.json"
    names = ("--scenario", "decode-1", "--scenario", "prefill-512")
    result = bench(model, *names, "--seconds", "1", "--json", out)
    assert result.exit_code == 0, result.stderr
    assert "decode-1" in result.stdout and "GB/s" in result.stdout
    assert "Skipped prefill-512: 512 tokens, the model takes 256." in result.stdout
    document = json.loads(out.read_text())
    assert {"command", "commit", "machine", "model"} <= set(document)
    assert {"processor", "threads", "torch", "python"} <= set(document["machine"])
    assert document["bandwidth_gb_per_s"] > 0 and list(document["skipped"]) == ["prefill-512"]
    (row,) = document["results"]
    assert row["scenario"]["name"] == "decode-1"
    assert row["tokens_per_s"] == pytest.approx(1000 / row["ms_per_step"])
    limits = (
        row["bytes"] / document["bandwidth_gb_per_s"],
        row["operations"] / document["giga_operations_per_s"],
    )
    assert row["limit_ms"] == pytest.approx(max(limits) / 1e6)


def test_all_scenarios_run_or_say_why_not(model: Path) -> None:
    result = bench(model, "--seconds", "2", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    for scenario in SCENARIOS:
        assert scenario.name in result.stdout


def test_the_list_needs_no_model() -> None:
    result = bench("--list")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == [s.name for s in SCENARIOS]


def test_mistakes(model: Path, tmp_path: Path) -> None:
    assert bench().exit_code == 2
    assert bench(model, "--scenario", "decode-7").exit_code == 2
    assert bench(model, "--seconds", "0").exit_code == 2
    assert bench(tmp_path / "missing").exit_code == 1
    folder = bench(model, "--json", tmp_path)
    assert folder.exit_code == 1 and "is a folder" in folder.stderr
