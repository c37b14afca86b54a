from __future__ import annotations

import sys
import types

import pytest


@pytest.fixture
def bare_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write checkpoints without a tokenizer: the tiny models have none."""
    module = types.ModuleType("awqkit.checkpoint.tokenizer")
    module.carry_tokenizer = lambda source, out, config: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
