"""Disks that fill up and files that shrink during a conversion: a clear error, and nothing lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from awqkit import QuantConfig, quantize
from awqkit import journal as journal_module
from awqkit.checkpoint.shard_file import ShardFile
from awqkit.checkpoint.staging import unfinished_path
from awqkit.errors import CheckpointError, OutputError
from tests.tiny_models import write_tiny_model

SMALL = QuantConfig(calib_samples=9, calib_seqlen=32, quality="fast")
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "model"
    return write_tiny_model(
        folder, num_hidden_layers=3, dtype=torch.bfloat16, max_shard_size="200KB"
    )


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    convert(model, out)
    return contents(out)


@pytest.fixture(autouse=True)
def saves_after_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "SAVING_SHARE", float("inf"))


def convert(model: Path, out: Path, **more: Any) -> None:
    quantize(model, out, SMALL, calib_dataset="self", device="cpu", **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def failing_from(call: int, real: Any) -> Any:
    calls = 0

    def function(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise FULL
        return real(*args, **kwargs)

    return function


def test_disk_that_fills_while_a_shard_is_written(model, expected, tmp_path) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        # Behind the second block's first tensors.
        patch.setattr(ShardFile, "_write_bytes", failing_from(33, ShardFile._write_bytes))
        with pytest.raises(OutputError, match=r"disk is full.*Free some space") as caught:
            convert(model, out)
    assert "1 of 3 blocks are done and kept" in " ".join(caught.value.__notes__)
    convert(model, out, resume=True)
    assert contents(out) == expected
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("call", [2, 3])
def test_disk_that_fills_while_the_journal_is_written(model, expected, tmp_path, call) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        failing = failing_from(call, journal_module.write_tensors)
        patch.setattr(journal_module, "write_tensors", failing)
        with pytest.raises(OutputError, match="disk is full"):
            convert(model, out)
    assert not out.exists()
    convert(model, out, resume=True)
    assert contents(out) == expected


def test_source_that_shrinks_while_it_is_read(model, expected, tmp_path) -> None:
    source, out = shutil.copytree(model, tmp_path / "model"), tmp_path / "out"
    last = max(source.glob("*.safetensors"))
    size = last.stat().st_size

    class Truncating:
        """Cuts the source behind the first block, as a copy that is still running would look."""

        def block_done(self, layer: int) -> None:
            os.truncate(last, size // 2)

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: None

    with pytest.raises(CheckpointError, match=last.name):
        convert(source, out, progress=Truncating())
    assert unfinished_path(out).exists()
    with pytest.raises(CheckpointError, match="truncated"):
        convert(source, out, resume=True)
    shutil.copy(model / last.name, last)
    convert(source, out, resume=True)
    assert contents(out) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "awqkit-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("left", range(420_000, 1_300_000, 80_000))
def test_disk_that_is_really_full(model, expected, small_disk, left: int) -> None:
    out, ballast = small_disk / "out", small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - left))
    with pytest.raises(OutputError, match=r"disk is (too )?full"):
        convert(model, out)
    assert not out.exists()
    ballast.unlink()
    convert(model, out, resume=True)
    assert contents(out) == expected
