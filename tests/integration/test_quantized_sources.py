"""Models that others have quantized, in the runtime as they are and repacked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import awqkit_runtime
from awqkit.cli import convert
from tests.checkpoint.test_gptq import gptq_folder


@pytest.mark.parametrize("version", [1, 2])
def test_gptq_runs_as_it_is_and_repacked_alike(tmp_path: Path, version: int) -> None:
    folder, _ = gptq_folder(tmp_path / "gptq", version=version)
    ids = torch.randint(0, 320, (2, 12), generator=torch.Generator().manual_seed(version))
    expected = awqkit_runtime.load(folder, device="cpu", dtype="float32")(ids)
    for form in ("awq", "compressed-tensors"):
        out = tmp_path / form
        result = CliRunner().invoke(convert, [str(folder), str(out), "--format", form])
        assert result.exit_code == 0, result.output
        logits = awqkit_runtime.load(out, device="cpu", dtype="float32")(ids)
        assert torch.equal(logits, expected)
