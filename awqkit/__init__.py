"""awqkit turns a Hugging Face chat model into a 4-bit one.

from awqkit import quantize, QuantConfig
report = quantize("path/to/model", "path/to/output", QuantConfig(), calib_dataset="pileval")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from awqkit.config import QuantConfig
    from awqkit.errors import AwqkitError
    from awqkit.pipeline import quantize

__all__ = ["AwqkitError", "QuantConfig", "quantize"]

_HOMES = {
    "AwqkitError": "awqkit.errors",
    "QuantConfig": "awqkit.config",
    "quantize": "awqkit.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the command line answers --help without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'awqkit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
