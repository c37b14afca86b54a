"""Compiled kernels on disk: kept, found again, mended, and harmless where nothing can be kept."""

from __future__ import annotations

import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from awqkit_runtime.kernels.cuda import cache, sources
from awqkit_runtime.kernels.cuda.sources import Program, program_key, read_sources


class Builder:
    """Counts how often it is asked."""

    def __init__(self, content: bytes) -> None:
        self.content, self.calls = content, 0

    def __call__(self) -> bytes:
        self.calls += 1
        return self.content


def test_what_was_built_is_found_again(tmp_path: Path) -> None:
    first, second = Builder(b"code" * 999), Builder(b"other")
    assert cache.load_or_build(tmp_path, "a.cubin", first) == first.content
    assert cache.load_or_build(tmp_path, "a.cubin", second) == first.content
    assert (first.calls, second.calls) == (1, 0)
    assert cache.load_or_build(tmp_path, "b.cubin", second) == b"other"


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_entry_is_built_anew(tmp_path: Path, damage: str) -> None:
    builder = Builder(bytes(range(256)) * 8)
    cache.load_or_build(tmp_path, "a.cubin", builder)
    path = tmp_path / "a.cubin"
    stored = bytearray(path.read_bytes())
    if damage == "flip":
        stored[len(stored) // 2] ^= 1
    path.write_bytes({"cut": stored[:-7], "flip": stored, "empty": b""}[damage])
    assert cache.load_or_build(tmp_path, "a.cubin", builder) == builder.content
    assert cache.load_or_build(tmp_path, "a.cubin", builder) == builder.content
    assert builder.calls == 2
    assert [file.name for file in tmp_path.iterdir()] == ["a.cubin"]


def test_without_a_folder_and_in_a_vanished_one_it_is_built_each_time(tmp_path: Path) -> None:
    builder = Builder(b"code")
    for folder in (None, tmp_path / "gone"):
        assert cache.load_or_build(folder, "a.cubin", builder) == b"code"
    assert builder.calls == 2


def _build_often(folder: Path, content: bytes) -> None:
    for number in range(40):
        for builder in (Builder(content), Builder(b"never")):
            got = cache.load_or_build(folder, f"{number}.cubin", builder)
            assert len(got) == len(content) and len(set(got)) == 1


def test_processes_that_build_at_once_do_no_harm(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_build_often, args=(tmp_path, bytes([65 + i]) * 100_000))
        for i in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 40


def test_the_cache_lies_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "awqkit" / "cuda"


def test_a_home_that_cannot_be_written_gives_a_private_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.write_text("a file, so that not even root can make a folder in it")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    folder = cache.cache_folder()
    assert folder is not None and folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert cache.cache_folder() == folder


def test_a_folder_that_others_may_write_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.write_text("")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"awqkit-cuda-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    assert cache.cache_folder() is None


def test_the_key_covers_source_header_macro_flag_and_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = Program(stem="rms_norm")
    key = program_key(program, ("-O3",), "nvrtc 13.0")
    changed = [
        program_key(Program(stem="silu_mul"), ("-O3",), "nvrtc 13.0"),
        program_key(program, ("-O2",), "nvrtc 13.0"),
        program_key(program, ("-O3",), "nvrtc 13.1"),
        program_key(program, ("-O", "3"), "nvrtc 13.0"),
    ]
    content = dict(read_sources())
    for path in ("cuda/rms_norm.cu", "cuda/bf16.cuh", "layout.h"):
        altered = {**content, path: content[path] + b" "}
        monkeypatch.setattr(sources, "read_sources", lambda altered=altered: altered)
        sources.sources_digest.cache_clear()
        changed.append(program_key(program, ("-O3",), "nvrtc 13.0"))
    assert len({key, *changed}) == 1 + len(changed)
    monkeypatch.setattr(sources, "read_sources", lambda: content)
    sources.sources_digest.cache_clear()
    assert program_key(program, ("-O3",), "nvrtc 13.0") == key


def test_names_tell_variants_apart() -> None:
    assert Program(stem="a", defines=("N=1", "FAST")).name == "a-N1-FAST"
