"""What a family of models has to say about itself, and what most of them say alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.errors import CheckpointError, UnsupportedModelError
from awqkit.checkpoint.families.config_fields import ConfigFields


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a canonical tensor lies in the family's own files.

    name: the stored tensor.  rows: the ranges of its rows that make up the canonical tensor, in
    order; None for all of them.  num_rows: rows of the stored tensor, where `rows` is given.
    """

    name: str
    rows: tuple[range, ...] | None = None
    num_rows: int | None = None


def stored_as_named(name: str, config: DecoderConfig) -> Location:
    """The location in a family whose names are the canonical ones."""
    return Location(name=name)


def renamed(pairs: Mapping[str, str]) -> Callable[[str, DecoderConfig], Location]:
    """The locations in a family that calls some modules of a layer otherwise.

    pairs: canonical module names, as they begin within a layer, and the family's own.
    """

    def locate(name: str, config: DecoderConfig) -> Location:
        match = re.match(r"model\.layers\.\d+\.", name)
        if match is None:
            return Location(name=name)
        prefix, rest = name[: match.end()], name[match.end() :]
        for canonical, own in pairs.items():
            if rest.startswith(canonical):
                return Location(name=prefix + own + rest.removeprefix(canonical))
        return Location(name=name)

    return locate


def unchanged(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a family that other engines load as it is."""
    return dict(raw)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family: its `model_type`s, its configuration, its tensors.

    read_config: config.json → DecoderConfig.
    locate: canonical name → stored tensor.
    written_config: the family's config.json → the one of a checkpoint that is written.
    locate_written: canonical name → tensor of a checkpoint that is written.
    left_out: stored tensors of other parts than the text decoder, which are not read.
    """

    name: str
    model_types: tuple[str, ...]
    read_config: Callable[[Mapping[str, Any]], DecoderConfig]
    locate: Callable[[str, DecoderConfig], Location] = stored_as_named
    written_config: Callable[[Mapping[str, Any]], dict[str, Any]] = unchanged
    locate_written: Callable[[str, DecoderConfig], Location] = stored_as_named
    left_out: re.Pattern[str] | None = None


_DTYPES = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
    "float32": "float32",
    "float": "float32",
}


def read_dtype(raw: Mapping[str, Any], default: str = "bfloat16") -> str:
    """The dtype of the weights by config.json: `dtype` (transformers 5) or `torch_dtype` (4)."""
    for key in ("dtype", "torch_dtype"):
        value = raw.get(key)
        if value is None or value == "auto":
            continue
        name = _DTYPES.get(str(value).removeprefix("torch."))
        if name is None:
            raise UnsupportedModelError(
                f"config.json: {key} is {value!r}; weights must be bfloat16, float16 or float32."
            )
        return name
    return default


def read_token_ids(fields: ConfigFields, key: str, default: int | None) -> tuple[int, ...]:
    """A token id, a list of them, or none. A key that is absent means the family's default."""
    value = fields.get(key) if fields.has(key) else default
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(item, bool) or not isinstance(item, int) for item in values):
        raise CheckpointError(f"config.json: {key} is {value!r}; it must hold token ids.")
    return tuple(item for item in values if item >= 0)


def require_silu(fields: ConfigFields) -> None:
    """Raise UnsupportedModelError for an MLP with another activation than SiLU."""
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(
            f"config.json: hidden_act is {activation!r}; this family is supported with 'silu' only."
        )
