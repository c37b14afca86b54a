"""Importing a package costs torch and nothing heavier."""

import subprocess
import sys

import pytest

HEAVY = ("cupy", "transformers", "datasets", "pyarrow", "triton", "sentencepiece")


@pytest.mark.parametrize(
    "module", ["awqkit", "awqkit.pipeline", "awqkit_runtime", "awqkit_runtime.llm"]
)
def test_import_is_lean(module: str) -> None:
    assert loaded_with(module, HEAVY) == "[]"


@pytest.mark.parametrize(
    "module", ["awqkit.cli", "awqkit_runtime.cli", "awqkit_runtime.serve.server"]
)
def test_who_computes_nothing_loads_no_torch(module: str) -> None:
    """So that --help is answered, and a server's engine started, at once."""
    if module == "awqkit_runtime.serve.server":
        pytest.importorskip("fastapi")
    assert loaded_with(module, (*HEAVY, "torch", "numpy")) == "[]"


def loaded_with(module: str, names: tuple[str, ...]) -> str:
    """The modules among these names that importing one brings with it, as a list is printed."""
    code = f"import sys, {module}; print([m for m in {names!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return result.stdout.strip()
