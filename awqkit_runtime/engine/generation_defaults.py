"""What a model's own generation_config.json asks of the sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.errors import CheckpointError, RequestError

#: For conversations with models that say nothing; greedy answers of small ones go in circles.
CHAT_FALLBACK = SamplingParams(temperature=0.8, top_p=0.95)

_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def sampling_defaults(generation_config: Mapping[str, Any]) -> SamplingParams:
    """The model's wishes over CHAT_FALLBACK; `do_sample: false` means greedy.

    CheckpointError for values that mean nothing.
    """
    given = {name: generation_config.get(name) for name in _FIELDS}
    wishes = {name: value for name, value in given.items() if value is not None}
    if generation_config.get("do_sample") is False:
        wishes["temperature"] = 0.0
    try:
        return replace(CHAT_FALLBACK, **wishes)
    except RequestError as error:
        raise CheckpointError(
            f"The model's generation_config.json: {error} Correct the entry or remove it."
        ) from error
