"""What is timed: steps of the engine of various shapes, and the work that each of them is."""

from __future__ import annotations

from dataclasses import dataclass

from awqkit.checkpoint import DecoderConfig
from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.config import QuantPolicy
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.models.footprint import BitsOf, embedding_bytes, loaded_bytes


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

    @property
    def pages(self) -> int:
        """Of all sequences."""
        return self.batch * pages_for(self.session_len)


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


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step must do at least: bytes that cross the memory bus, multiplications and adds."""

    bytes: int
    operations: int


def work_of(
    scenario: Scenario,
    config: DecoderConfig,
    bits_of: BitsOf,
    placement: Placement,
) -> Work:
    """Every weight is read once and every key and value of the cache, the new ones are written.

    Operations: two for each weight of a linear and token, the head for the last tokens alone, and
    four for each query element and the key that it sees.
    """
    table = config.vocab_size * config.hidden_size
    weights = loaded_bytes(config, bits_of, placement)
    if not config.tie_word_embeddings:
        weights -= embedding_bytes(config, bits_of, placement)
    page_format = PageFormat.for_policy(config, scenario.quant_policy, placement.dtype)
    cached = scenario.batch * scenario.session_len * page_format.bytes_per_token
    tokens = scenario.batch * scenario.new_tokens
    seen = scenario.context + (scenario.new_tokens + 1) / 2
    attention = 4 * tokens * seen * config.q_size * config.num_layers
    linears = 2 * tokens * sum(_passed_weights(config, n) for n in range(config.num_layers))
    return Work(
        bytes=weights + cached,
        operations=int(linears + attention + 2 * scenario.batch * table),
    )


def _passed_weights(config: DecoderConfig, layer: int) -> int:
    """Elements of the linears of one layer that a token passes."""
    attention = config.hidden_size * (2 * config.q_size + 2 * config.kv_size)
    experts = config.experts_of(layer)
    if experts is None:
        return attention + 3 * config.hidden_size * config.intermediate_size
    inner = experts.experts_per_token * experts.intermediate_size
    inner += experts.shared_intermediate_size or 0
    return attention + config.hidden_size * (3 * inner + experts.num_experts)
