"""The arrows of docs/architecture.md: who may import whom, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Every module belongs to the part with the longest matching prefix; a part may import those named.
LEAVES = {"awqkit.errors", "awqkit.config", "awqkit.version", "awqkit.device", "awqkit.stopwatch"}
ARROWS = {
    "awqkit.checkpoint": set(),
    "awqkit.errors": {"awqkit.checkpoint"},
    "awqkit.config": {"awqkit.checkpoint", "awqkit.errors"},
    "awqkit.version": set(),
    "awqkit.device": {"awqkit.errors"},
    "awqkit.stopwatch": set(),
    "awqkit.decoder": {"awqkit.checkpoint"},
    "awqkit.search": {"awqkit.checkpoint"},
    "awqkit.interrupts": set(),
    "awqkit.ranks": {"awqkit.errors", "awqkit.interrupts"},
    "awqkit.calibration": {
        "awqkit.decoder",
        "awqkit.checkpoint",
        "awqkit.search",
        "awqkit.ranks",
        *LEAVES,
    },
    "awqkit.evaluate": {"awqkit.decoder", "awqkit.checkpoint"},
    "awqkit": {"awqkit"},  # the pipeline and the commands stand on top
    "awqkit_runtime.errors": {"awqkit.checkpoint"},
    "awqkit_runtime.config": {"awqkit_runtime.errors", "awqkit.checkpoint"},
    "awqkit_runtime.units": set(),
    "awqkit_runtime.kernels": {
        "awqkit.checkpoint",
        "awqkit_runtime.errors",
        "awqkit_runtime.cache.page_format",
    },
    # The bytes of pages, which kernels read and write, stand below everything else of the cache.
    "awqkit_runtime.cache.page_format": {"awqkit.checkpoint", "awqkit_runtime.config"},
    "awqkit_runtime.cache": {
        "awqkit.checkpoint",
        "awqkit.decoder",
        "awqkit_runtime.kernels",
        "awqkit_runtime.errors",
        "awqkit_runtime.config",
    },
    "awqkit_runtime.layers": {
        "awqkit.checkpoint",
        "awqkit.decoder",
        "awqkit_runtime.kernels",
        "awqkit_runtime.errors",
    },
    "awqkit_runtime.models": {
        "awqkit.checkpoint",
        "awqkit.decoder",
        "awqkit_runtime.kernels",
        "awqkit_runtime.layers",
        "awqkit_runtime.errors",
        "awqkit_runtime.config",
    },
    "awqkit_runtime.engine": {
        "awqkit.checkpoint",
        "awqkit.decoder",
        "awqkit_runtime.kernels",
        "awqkit_runtime.layers",
        "awqkit_runtime.models",
        "awqkit_runtime.cache",
        "awqkit_runtime.errors",
        "awqkit_runtime.config",
        "awqkit_runtime.openmp",
        "awqkit_runtime.units",
    },
    "awqkit_runtime.serve": {
        "awqkit.checkpoint",
        "awqkit_runtime.engine",
        "awqkit_runtime.cuda_start",
        "awqkit_runtime.openmp",
        "awqkit_runtime.notes",
        "awqkit_runtime.errors",
        "awqkit_runtime.config",
    },
    "awqkit_runtime": {"awqkit.checkpoint", "awqkit.decoder", "awqkit_runtime"},
}


def modules() -> list[Path]:
    return sorted(p for top in ("awqkit", "awqkit_runtime") for p in (ROOT / top).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(name: str) -> str:
    return max((p for p in ARROWS if name == p or name.startswith(p + ".")), key=len)


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return {name for name in names if name.split(".")[0] in ("awqkit", "awqkit_runtime")}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_module_imports_only_along_the_arrows(path: Path) -> None:
    part = part_of(module_name(path))
    allowed = ARROWS[part] | {part}
    for name in imported(path):
        if name in ("awqkit", "awqkit_runtime"):
            continue  # named beside the attribute that is imported from it
        assert any(name == a or name.startswith(a + ".") for a in allowed), (
            f"{module_name(path)} ({part}) must not import {name}"
        )


def test_search_touches_neither_files_nor_devices() -> None:
    forbidden = {"os", "pathlib", "io", "json", "safetensors"}
    for path in (ROOT / "awqkit" / "search").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        found |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not found & forbidden, path
        assert ".cuda(" not in path.read_text(encoding="utf-8"), path


def test_scheduler_and_allocator_do_not_know_torch() -> None:
    for name in ("engine/scheduler.py", "cache/allocator.py"):
        source = (ROOT / "awqkit_runtime" / name).read_text(encoding="utf-8")
        assert "torch" not in source, name
