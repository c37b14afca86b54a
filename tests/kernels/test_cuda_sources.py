"""The CUDA sources: all of them in the installed package, and each one somewhere in use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from awqkit_runtime.kernels.cuda.sources import read_sources, source_folder
from awqkit_runtime.kernels.programs import all_programs
from awqkit_runtime.kernels.w4_plan import MULTIPROCESSORS

ROOT = Path(__file__).parents[2]


def test_an_installed_package_brings_its_sources(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    library = tmp_path / "lib"
    build = ["egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(library)]
    subprocess.run(
        [sys.executable, "setup.py", "-q", *build], cwd=ROOT, check=True, capture_output=True
    )
    code = "from awqkit_runtime.kernels.cuda import sources as s; print(s.source_folder()); "
    code += "print(*sorted(s.read_sources()), sep='\\n')"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(library)},
        check=True,
        capture_output=True,
        text=True,
    )
    folder, *names = shown.stdout.splitlines()
    assert folder == str(library / "awqkit_runtime" / "_csrc")
    assert names == sorted(read_sources())


def test_every_source_belongs_to_a_program() -> None:
    stems = {program.stem for arch in MULTIPROCESSORS for program in all_programs(arch)}
    assert stems == {path.stem for path in source_folder().glob("cuda/*.cu")}


def test_every_program_has_its_source() -> None:
    for arch in MULTIPROCESSORS:
        for program in all_programs(arch):
            assert f"cuda/{program.stem}.cu" in read_sources()


@pytest.mark.parametrize(
    ("stem", "entry"),
    [("decode_places", "decode_places"), ("paged_decode", "paged_decode_schedule")],
)
def test_kernels_whose_results_are_read_ahead_end_before_any_successor_starts(
    stem: str, entry: str
) -> None:
    source = read_sources()[f"cuda/{stem}.cu"].decode()
    found = re.search(rf"__global__[^{{;]*\b{entry}\(.*?\n}}\n", source, re.DOTALL)
    assert found is not None
    assert "wait_for_predecessor();" in found[0]
    assert "let_successor_start" not in found[0]
    assert "__threadfence();" in found[0]
