from __future__ import annotations

from typing import Any

import pytest

from awqkit.checkpoint import CheckpointError, UnsupportedModelError
from awqkit.checkpoint.decoder_config import RopeConfig
from awqkit.checkpoint.families.rope import read_rope

YARN = {
    "factor": 4.0,
    "original_max_position_embeddings": 1024,
    "beta_fast": 24,
    "beta_slow": 2,
    "attention_factor": 1.25,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
    "truncate": False,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 2.0,
    "high_freq_factor": 5.0,
    "original_max_position_embeddings": 512,
}
EXPECTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "linear": ({"factor": 2.5}, {"factor": 2.5}),
    "dynamic": ({"factor": 2}, {"factor": 2.0, "original_max_position_embeddings": 4096}),
    "llama3": (LLAMA3, LLAMA3),
    "yarn": (YARN, YARN),
    "longrope": (
        {"short_factor": [1, 1.5], "long_factor": [2, 9.5]},
        {
            "factor": 1.0,
            "original_max_position_embeddings": 4096,
            "short_factors": (1.0, 1.5),
            "long_factors": (2.0, 9.5),
        },
    ),
}


def read(raw: dict[str, Any]) -> RopeConfig:
    return read_rope(raw, max_position_embeddings=4096)


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize(
    "style", ["rope_parameters", "rope_scaling", "legacy type", "theta outside"]
)
def test_every_kind_in_every_spelling(kind: str, style: str) -> None:
    values, expected = EXPECTED[kind]
    raw: dict[str, Any] = {
        "rope_parameters": {"rope_parameters": {"rope_type": kind, "rope_theta": 5e5, **values}},
        "rope_scaling": {"rope_theta": 5e5, "rope_scaling": {"rope_type": kind, **values}},
        "legacy type": {"rope_theta": 5e5, "rope_scaling": {"type": kind, **values}},
        "theta outside": {"rope_theta": 5e5, "rope_parameters": {"rope_type": kind, **values}},
    }[style]
    assert read(raw) == RopeConfig(kind=kind, theta=5e5, **expected)


@pytest.mark.parametrize("raw", [{}, {"rope_scaling": None}, {"rope_parameters": None}])
def test_nothing_said_means_the_default(raw: dict[str, Any]) -> None:
    assert read(raw) == RopeConfig(kind="default", theta=10000.0)


def test_partial_rotary_factor_inside_and_outside() -> None:
    assert read({"partial_rotary_factor": 0.5}).partial_rotary_factor == 0.5
    inside = {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}
    assert read(inside).partial_rotary_factor == 0.25


def test_original_length_defaults_and_outer_key() -> None:
    scaling = {"rope_type": "yarn", "factor": 2.0}
    assert read({"rope_scaling": scaling}).original_max_position_embeddings == 4096
    outer = {"rope_scaling": scaling, "original_max_position_embeddings": 2048}
    assert read(outer).original_max_position_embeddings == 2048


def test_yarn_factor_from_the_lengths() -> None:
    scaling = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 1024}
    assert read({"rope_scaling": scaling}).factor == 4.0


def test_longrope_factor_from_the_lengths() -> None:
    scaling = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    raw = {"rope_scaling": scaling, "original_max_position_embeddings": 1024}
    assert read(raw).factor == 4.0


@pytest.mark.parametrize("short", [None, 1.0, ["1.0"], [0.0], [-1.0], [True]])
def test_bad_longrope_factors_are_refused(short: Any) -> None:
    scaling = {"type": "longrope", "short_factor": short, "long_factor": [2.0]}
    with pytest.raises(CheckpointError, match="short_factor"):
        read({"rope_scaling": scaling})


@pytest.mark.parametrize("kind", ["su", "mrope", "proportional"])
def test_unknown_kind_lists_the_known(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"'{kind}'.*default, linear, dynamic, llama3"):
        read({"rope_scaling": {"type": kind, "factor": 2.0}})


def test_kinds_by_layer_are_refused() -> None:
    nested = {"full_attention": {"rope_type": "default"}, "sliding_attention": {}}
    with pytest.raises(UnsupportedModelError, match="layer to layer"):
        read({"rope_parameters": nested})


@pytest.mark.parametrize(
    "raw",
    [
        {"rope_scaling": {"type": "linear"}},
        {"rope_scaling": {"type": "linear", "factor": "2"}},
        {"rope_scaling": {"type": "linear", "factor": 0}},
        {"rope_scaling": {"type": "dynamic", "factor": float("nan")}},
        {"rope_scaling": {"type": "llama3", "factor": 8, "original_max_position_embeddings": 0}},
        {"rope_scaling": [1]},
        {"rope_scaling": {"type": 5, "factor": 2.0}},
        {"rope_theta": -1},
        {"rope_theta": "1e4"},
        {"partial_rotary_factor": 1.5},
    ],
)
def test_bad_values_are_named(raw: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read(raw)
