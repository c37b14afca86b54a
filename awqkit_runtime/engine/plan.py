"""Where the memory of a machine goes when a model is served on it: pure arithmetic.

    free = memory − weights        cache = cache_max_entry_count · free, in whole pages

What the cache leaves is for the steps: workspace, graphs, what libraries keep. On a GPU the cache
takes nothing of that; on a CPU it is never more than max_batch_size sessions of session_len need.
The pages are those that the engine allocates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from awqkit.checkpoint import DecoderConfig
from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat, pages_for
from awqkit_runtime.config import PREFILL_TOKENS, EngineConfig, QuantPolicy, TokenCount
from awqkit_runtime.engine.cache_size import cache_pages
from awqkit_runtime.engine.step_memory import reserved, step_memory
from awqkit_runtime.engine.workspace import Workspace
from awqkit_runtime.errors import OutOfMemoryError
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.models.loader import resolve_session_len
from awqkit_runtime.units import human_bytes

#: Of what is free after the weights, what a step may take whose size nobody has chosen.
_STEP_SHARE = 1 / 8


class DoesNotFit(OutOfMemoryError):
    """lacking: what there is no room for, in a word or two."""

    def __init__(self, text: str, *, lacking: str) -> None:
        super().__init__(text)
        self.lacking = lacking


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Sizes are in bytes."""

    memory: int
    weights: int
    quant_policy: QuantPolicy
    cache_size: float | int | TokenCount
    #: New tokens of the largest step.
    step_tokens: int
    max_batch_size: int
    session_len: int
    bytes_per_token: int
    pages: int
    #: What the whole cache takes.
    cache: int
    workspace: Workspace
    #: Of CUDA graphs and of what libraries and kernels keep; 0 where there are none.
    graphs: int
    libraries: int

    @property
    def free(self) -> int:
        """After the weights."""
        return self.memory - self.weights

    @property
    def left(self) -> int:
        """Unused in the largest step; below 0 that step may run out of memory."""
        return self.free - self.cache - self.workspace.total - self.graphs - self.libraries

    @property
    def tokens(self) -> int:
        """Tokens that the cache holds."""
        return self.pages * PAGE_TOKENS

    @property
    def sessions(self) -> int:
        """Sessions of full length that the cache holds."""
        return self.pages // pages_for(self.session_len)

    @property
    def line(self) -> str:
        """The plan in a line."""
        step = "fits besides" if self.left >= 0 else "may not fit besides"
        kept = self.graphs + self.libraries
        beside = f", with {human_bytes(kept)} for graphs and libraries," if kept else ","
        return (
            f"Memory: {human_bytes(self.memory)} free, {human_bytes(self.weights)} for weights, "
            f"{human_bytes(self.cache)} for a cache of {self.tokens:,} tokens; the largest step, "
            f"{human_bytes(self.workspace.total)}{beside} {step}."
        )

    @property
    def session_bytes(self) -> int:
        return pages_for(self.session_len) * PAGE_TOKENS * self.bytes_per_token


def plan_memory(
    config: DecoderConfig,
    *,
    weights: int,
    memory: int,
    engine: EngineConfig,
    placement: Placement,
) -> MemoryPlan:
    """How a model whose loaded weights take `weights` bytes shares `memory` bytes.

    Raises DoesNotFit where the weights or one session do not fit, and ConfigError where the
    settings contradict the model or the memory. Whether a step can run out of memory, `left` says.
    """
    session_len = resolve_session_len(config, engine.session_len)
    _require_weights_fit(weights, memory)
    page_format = PageFormat.for_policy(config, engine.policy, placement.dtype)
    engine = _with_step_tokens(engine, config, placement, session_len, free=memory - weights)
    steps = step_memory(config, placement, engine, session_len=session_len)
    try:
        pages = cache_pages(
            engine,
            page_format,
            device=placement.device,
            session_len=session_len,
            free_bytes=memory - weights,
            reserved_bytes=reserved(steps, placement.device),
        )
    except OutOfMemoryError as error:
        raise DoesNotFit(str(error), lacking="no session") from error
    max_batch_size = engine.batch_size_for(placement.device)
    step_tokens = min(engine.prefill_tokens_for(placement.device), max_batch_size * session_len)
    return MemoryPlan(
        memory=memory,
        weights=weights,
        quant_policy=engine.policy,
        cache_size=engine.cache_size,
        step_tokens=step_tokens,
        max_batch_size=max_batch_size,
        session_len=session_len,
        bytes_per_token=page_format.bytes_per_token,
        pages=pages,
        cache=pages * page_format.bytes_per_page,
        workspace=steps.workspace,
        graphs=steps.graphs,
        libraries=steps.libraries,
    )


def _with_step_tokens(
    engine: EngineConfig,
    config: DecoderConfig,
    placement: Placement,
    session_len: int,
    *,
    free: int,
) -> EngineConfig:
    """With the largest step on a GPU, of those that suit it, whose workspace leaves the cache most
    of what is free; settings that name one stay as they are."""
    if engine.max_prefill_tokens is not None or placement.device.type != "cuda":
        return engine
    for tokens in PREFILL_TOKENS:
        engine = replace(engine, max_prefill_tokens=tokens)
        steps = step_memory(config, placement, engine, session_len=session_len)
        if steps.workspace.total <= free * _STEP_SHARE:
            break
    return engine


def _require_weights_fit(weights: int, memory: int) -> None:
    if weights >= memory:
        raise DoesNotFit(
            f"The weights alone take {human_bytes(weights)}, but there are {human_bytes(memory)}. "
            "Quantize the model with awqkit-convert if it is not in 4 bits yet, choose a smaller "
            "one, or more memory.",
            lacking="no model",
        )
