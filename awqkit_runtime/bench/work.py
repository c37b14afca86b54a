"""The work that a scenario is: the bytes and the arithmetic that nothing can spare it."""

from __future__ import annotations

from dataclasses import dataclass

from awqkit.checkpoint import DecoderConfig
from awqkit_runtime.bench.scenarios import Scenario
from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.models.footprint import BitsOf, embedding_bytes, loaded_bytes


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


def pages_of(scenario: Scenario) -> int:
    """Pages of all its sequences."""
    return scenario.batch * pages_for(scenario.session_len)
