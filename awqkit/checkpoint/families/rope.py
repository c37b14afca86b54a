"""Rotary settings, as transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) write
them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awqkit.checkpoint.decoder_config import ROPE_KINDS, RopeConfig, RopeKind
from awqkit.checkpoint.errors import CheckpointError, UnsupportedModelError
from awqkit.checkpoint.families.config_fields import ConfigFields

DEFAULT_THETA = 10000.0


def read_rope(
    raw: Mapping[str, Any], *, max_position_embeddings: int, default_theta: float = DEFAULT_THETA
) -> RopeConfig:
    """The rotary embedding that a config.json asks for.

    Raises UnsupportedModelError for a kind that is not known, CheckpointError for bad values.
    """
    top = ConfigFields(raw)
    key = "rope_parameters" if top.section("rope_parameters") else "rope_scaling"
    section = top.section(key)
    if any(isinstance(value, dict) for value in section.values()):
        raise UnsupportedModelError(
            f"config.json: {key} differs from layer to layer ({', '.join(section)}); "
            "only one rotary embedding for all layers is supported."
        )
    fields = ConfigFields(section, f"config.json, {key}")
    kind = _kind(fields, key)
    theta = fields.number("rope_theta", top.number("rope_theta", default_theta))
    partial = fields.number("partial_rotary_factor", top.number("partial_rotary_factor", 1.0))
    if theta <= 0 or not 0 < partial <= 1:
        raise CheckpointError(
            f"config.json: rotary base {theta} and partial_rotary_factor {partial} make no rotary "
            "embedding; the base must be positive, the factor in (0, 1]."
        )
    original = _original_length(kind, fields, top, max_position_embeddings)
    return RopeConfig(
        kind=kind,
        theta=theta,
        factor=_factor(kind, fields, key, max_position_embeddings, original),
        partial_rotary_factor=partial,
        original_max_position_embeddings=original,
        low_freq_factor=fields.number("low_freq_factor", 1.0),
        high_freq_factor=fields.number("high_freq_factor", 4.0),
        beta_fast=fields.number("beta_fast", 32.0),
        beta_slow=fields.number("beta_slow", 1.0),
        attention_factor=fields.optional_number("attention_factor"),
        mscale=fields.optional_number("mscale"),
        mscale_all_dim=fields.optional_number("mscale_all_dim"),
        truncate=fields.flag("truncate", default=True),
        short_factors=_divisors(kind, fields, "short_factor"),
        long_factors=_divisors(kind, fields, "long_factor"),
    )


def _kind(fields: ConfigFields, key: str) -> RopeKind:
    name = fields.text("rope_type", fields.text("type", "default"))
    for kind in ROPE_KINDS:
        if kind == name:
            return kind
    raise UnsupportedModelError(
        f"config.json: {key} asks for the rotary kind {name!r}, which is not supported; "
        f"known are {', '.join(ROPE_KINDS)}. Use a variant of the model with one of these."
    )


def _original_length(
    kind: RopeKind, fields: ConfigFields, top: ConfigFields, max_position_embeddings: int
) -> int | None:
    if kind in ("default", "linear"):
        return None
    if kind == "dynamic":
        # The length from which the base grows is the model's maximum, whatever else is written.
        return max_position_embeddings
    outer = top.optional_integer("original_max_position_embeddings")
    inner = fields.integer("original_max_position_embeddings", max_position_embeddings)
    length = inner if outer is None else outer
    if length < 1:
        raise CheckpointError(
            f"config.json: original_max_position_embeddings is {length}; it must be positive."
        )
    return length


def _factor(
    kind: RopeKind,
    fields: ConfigFields,
    key: str,
    max_position_embeddings: int,
    original: int | None,
) -> float:
    if kind == "default":
        return 1.0
    if kind in ("yarn", "longrope") and fields.get("factor") is None and original is not None:
        return max_position_embeddings / original
    factor = fields.number("factor")
    if factor <= 0:
        raise CheckpointError(f"config.json, {key}: factor is {factor}; it must be positive.")
    return factor


def _divisors(kind: RopeKind, fields: ConfigFields, key: str) -> tuple[float, ...]:
    if kind != "longrope":
        return ()
    divisors = fields.numbers(key)
    if any(divisor <= 0 for divisor in divisors):
        raise CheckpointError(f"config.json: {key} of the rotary embedding must be positive.")
    return divisors
