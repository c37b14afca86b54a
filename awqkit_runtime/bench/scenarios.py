"""What is timed: steps of the engine of various shapes, and the work that each of them is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from awqkit.checkpoint import DecoderConfig
from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.config import QuantPolicy
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.models.footprint import loaded_bytes


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


def _decode(batch: int) -> Scenario:
    return Scenario(name=f"decode-{batch}", batch=batch, new_tokens=1, context=128)


def _prefill(tokens: int) -> Scenario:
    return Scenario(name=f"prefill-{tokens}", batch=1, new_tokens=tokens, context=0)


def _long(name: str, quant_policy: QuantPolicy) -> Scenario:
    return Scenario(name=name, batch=8, new_tokens=1, context=1024, quant_policy=quant_policy)


SCENARIOS = (
    _decode(1),
    _decode(8),
    _decode(32),
    _prefill(512),
    _prefill(2048),
    _long("decode-8-long", 0),
    _long("decode-8-long-int8", 8),
    _long("decode-8-long-int4", 4),
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step must do at least: bytes that cross the memory bus, multiplications and adds."""

    bytes: int
    operations: int


def work_of(
    scenario: Scenario,
    config: DecoderConfig,
    is_packed: Callable[[str], bool],
    placement: Placement,
) -> Work:
    """Every weight is read once and every key and value of the cache, the new ones are written.

    Operations: two for each weight of a linear and token, the head for the last tokens alone, and
    four for each query element and the key that it sees.
    """
    table = config.vocab_size * config.hidden_size
    weights = loaded_bytes(config, is_packed, placement)
    if not config.tie_word_embeddings:
        weights -= table * placement.dtype.itemsize
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
