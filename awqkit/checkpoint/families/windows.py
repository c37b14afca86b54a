"""Sliding attention windows, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from awqkit.checkpoint.errors import CheckpointError, UnsupportedModelError
from awqkit.checkpoint.families.config_fields import ConfigFields

FULL = "full_attention"
SLIDING = "sliding_attention"


def read_layer_types(fields: ConfigFields, num_layers: int) -> list[bool] | None:
    """For each layer whether its attention slides, by `layer_types`; None where it is not given."""
    kinds = fields.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise CheckpointError(
            f"config.json: layer_types must list {num_layers} kinds, one for each layer."
        )
    unknown = next((kind for kind in kinds if kind not in (FULL, SLIDING)), None)
    if unknown is not None:
        raise UnsupportedModelError(
            f"config.json: layer_types holds {unknown!r}; supported are {FULL!r} and {SLIDING!r}."
        )
    return [kind == SLIDING for kind in kinds]


def windows_of(sliding: Sequence[bool], window: int | None) -> tuple[int | None, ...]:
    """DecoderConfig.windows: `window` keys in the layers that slide; empty where none does."""
    if window is None or not any(sliding):
        return ()
    if window < 1:
        raise CheckpointError(
            f"config.json: sliding_window is {window}; it must count keys, or be null."
        )
    return tuple(window if slides else None for slides in sliding)
