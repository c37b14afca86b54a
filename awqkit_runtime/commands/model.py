"""The model of a command that runs one in its own process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from awqkit_runtime.commands.console import working
from awqkit_runtime.commands.options import engine_settings
from awqkit_runtime.cuda_start import start_cuda

if TYPE_CHECKING:
    from awqkit_runtime.engine.plan import MemoryPlan
    from awqkit_runtime.llm import LLM


def load_model(
    model: str, options: dict[str, Any], announce: Callable[[MemoryPlan], None] | None = None
) -> LLM:
    """options: the command's; announce: as LLM takes it."""
    with working(f"Loading {model}"):
        start_cuda(options["device"])
        from awqkit_runtime.llm import LLM

        return LLM(model, **engine_settings(options), announce=announce)
