"""The families of models that can be read, found by config.json's `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awqkit.checkpoint.errors import UnsupportedModelError
from awqkit.checkpoint.families.family import Family, Location
from awqkit.checkpoint.families.gemma2 import GEMMA2
from awqkit.checkpoint.families.gemma3 import GEMMA3
from awqkit.checkpoint.families.gemma3_vision import GEMMA3_VISION
from awqkit.checkpoint.families.internlm2 import INTERNLM2
from awqkit.checkpoint.families.internlm3 import INTERNLM3
from awqkit.checkpoint.families.llama import LLAMA
from awqkit.checkpoint.families.mistral import MISTRAL
from awqkit.checkpoint.families.mixtral import MIXTRAL
from awqkit.checkpoint.families.phi3 import PHI3
from awqkit.checkpoint.families.qwen2 import QWEN2
from awqkit.checkpoint.families.qwen2_moe import QWEN2_MOE
from awqkit.checkpoint.families.qwen3 import QWEN3
from awqkit.checkpoint.families.qwen3_moe import QWEN3_MOE

__all__ = ["FAMILIES", "Family", "Location", "find_family"]

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    INTERNLM2,
    INTERNLM3,
    MISTRAL,
    MIXTRAL,
    QWEN2,
    QWEN2_MOE,
    QWEN3,
    QWEN3_MOE,
    PHI3,
    GEMMA2,
    GEMMA3,
    GEMMA3_VISION,
)


def find_family(raw: Mapping[str, Any]) -> Family:
    """The family of a config.json; UnsupportedModelError, with the known ones, for any other."""
    model_type = raw.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(f"{family.name} ({', '.join(family.model_types)})" for family in FAMILIES)
    found = f"model_type {model_type!r}" if model_type else "no model_type"
    raise UnsupportedModelError(
        f"config.json has {found}, which is no supported family. Known are: {known}. If the model "
        "has Llama's structure under another name, convert it to Llama's tensor names and config "
        "and try again; otherwise open an issue that names the model."
    )
