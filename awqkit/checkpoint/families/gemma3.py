"""Gemma 3, text: Gemma 2 with norms over the heads of q and k in place of soft caps, windows in
five layers of six, and a rotary base of their own there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.families.config_fields import ConfigFields
from awqkit.checkpoint.families.family import Family
from awqkit.checkpoint.families.gemma2 import DEFAULTS as GEMMA2_DEFAULTS
from awqkit.checkpoint.families.gemma2 import locate, read_gemma_config
from awqkit.checkpoint.families.rope import read_rope
from awqkit.checkpoint.families.windows import FULL, SLIDING

#: What the family means where config.json does not say.
DEFAULTS = GEMMA2_DEFAULTS | {
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window_pattern": 6,
}
_ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


def read_gemma3_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Map a config.json of `model_type` gemma3_text."""
    raw = DEFAULTS | dict(raw)
    fields = ConfigFields(raw)
    pattern = fields.integer("sliding_window_pattern")
    if pattern < 1:
        raise CheckpointError(
            f"config.json: sliding_window_pattern is {pattern}; it counts layers."
        )
    config = read_gemma_config(_without_rope(raw), pattern=pattern)
    length = config.max_position_embeddings
    return dataclasses.replace(
        config,
        qk_norm=True,
        rope=read_rope(_rope_fields(raw, FULL), max_position_embeddings=length),
        window_rope=read_rope(_rope_fields(raw, SLIDING), max_position_embeddings=length),
    )


def _without_rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in _ROPE_KEYS}


def _rope_fields(raw: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The rotary settings of the layers of one kind, in the words of a model that has only one.

    Newer files have a section for each kind; in older ones the scaling is that of full attention.
    """
    theta = raw["rope_theta" if kind == FULL else "rope_local_base_freq"]
    sections = ConfigFields(raw).section("rope_parameters")
    if FULL in sections or SLIDING in sections:
        return {"rope_theta": theta, "rope_parameters": sections.get(kind)}
    if kind == SLIDING:
        return {"rope_theta": theta}
    return {key: raw.get(key) for key in _ROPE_KEYS}


GEMMA3 = Family(
    name="Gemma 3",
    model_types=("gemma3_text",),
    read_config=read_gemma3_config,
    locate=locate,
    locate_written=locate,
)
