"""Warnings as a user reads them, in the commands' processes and in the engine's."""

from __future__ import annotations

import logging
import warnings

_LOUD_LIBRARIES = ("torch", "transformers", "huggingface_hub", "tokenizers")


def quiet_libraries() -> None:
    """Our warnings become sentences; other libraries' advice to their developers is not shown."""
    warnings.formatwarning = _as_note
    warnings.filterwarnings("ignore", module=rf"({'|'.join(_LOUD_LIBRARIES)})\b")
    for name in _LOUD_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


def _as_note(message: Warning | str, *place: object, **line: object) -> str:
    """Without the place in our source, for which the user has no use."""
    return f"Note: {message}\n"
