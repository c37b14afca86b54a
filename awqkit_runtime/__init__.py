"""Run chat models: 4-bit checkpoints of awqkit and plain ones, with a paged, quantized KV cache."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from awqkit_runtime.engine.sampling_params import SamplingParams
    from awqkit_runtime.llm import LLM
    from awqkit_runtime.models.loader import load

#: Name -> module that defines it; imported on first use, so that importing the package is cheap.
_EXPORTS = {
    "LLM": "awqkit_runtime.llm",
    "SamplingParams": "awqkit_runtime.engine.sampling_params",
    "load": "awqkit_runtime.models.loader",
}

__all__ = ["LLM", "SamplingParams", "load"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
