"""Gradients that add up in the same order every time, so that a resumed run ends alike."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def repeatable() -> Iterator[None]:
    """Have torch choose deterministic algorithms, where an operation has one.

    Nothing here reads what nobody wrote, so new tensors are not filled first.
    """
    before = torch.get_deterministic_debug_mode()
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        # torch.use_deterministic_algorithms would import torch's compiler, which takes seconds.
        torch.set_deterministic_debug_mode("warn")
        settings.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)
            settings.fill_uninitialized_memory = fills
