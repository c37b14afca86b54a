"""The commands settle how threads wait before torch reads it, unless the user has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import builtins, os, sys
real = builtins.__import__
def spy(name, *args, **kwargs):
    if name == "torch" and "torch" not in sys.modules:
        print(os.environ.get("GOMP_SPINCOUNT"))
        sys.exit()
    return real(name, *args, **kwargs)
builtins.__import__ = spy
import {module}
import torch
"""


@pytest.mark.parametrize("module", ["awqkit.cli", "awqkit_runtime.cli"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_set_before_torch_and_never_overridden(
    module: str, given: dict[str, str], expected: str
) -> None:
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {key: value for key, value in os.environ.items() if key not in ours} | given
    code = CODE.format(module=module)
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == expected
