"""What is timed: steps of the engine of various shapes."""

from __future__ import annotations

from dataclasses import dataclass

from awqkit_runtime.config import QuantPolicy


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A step in which `batch` sequences of `context` cached tokens get `new_tokens` each."""

    name: str
    batch: int
    new_tokens: int
    context: int
    quant_policy: QuantPolicy = 0

    @property
    def session_len(self) -> int:
        """Tokens of each sequence after the step."""
        return self.context + self.new_tokens


def _decode(batch: int, context: int = 128, quant_policy: QuantPolicy = 0) -> Scenario:
    name = f"batch-{batch}" if context == 128 else f"batch-{batch}-context-{context}"
    if quant_policy:
        name += f"-int{quant_policy}"
    return Scenario(
        name=name, batch=batch, new_tokens=1, context=context, quant_policy=quant_policy
    )


def _prefill(tokens: int, batch: int = 1) -> Scenario:
    name = f"prefill-{tokens}" if batch == 1 else f"prefill-{batch}x{tokens}"
    return Scenario(name=name, batch=batch, new_tokens=tokens, context=0)


#: What is timed on a GPU.
GPU_SCENARIOS = (
    *(_decode(batch) for batch in (1, 8, 32, 128, 256)),
    _decode(1, 15000),
    *(_decode(16, 8000, policy) for policy in (0, 8, 4)),
    _prefill(2048),
    _prefill(8192),
    _prefill(2048, batch=16),
)
#: What is timed on a CPU, where little memory and arithmetic must do.
CPU_SCENARIOS = (
    *(_decode(batch) for batch in (1, 8, 32)),
    *(_decode(8, 1024, policy) for policy in (0, 8, 4)),
    _prefill(512),
    _prefill(2048),
)
#: All that can be asked for by name.
SCENARIOS = (*GPU_SCENARIOS, *(s for s in CPU_SCENARIOS if s not in GPU_SCENARIOS))


def default_scenarios(device_type: str) -> tuple[Scenario, ...]:
    """What is timed where nothing is named."""
    return GPU_SCENARIOS if device_type == "cuda" else CPU_SCENARIOS
