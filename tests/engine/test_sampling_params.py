"""Wrong sampling parameters are refused when they are made, by name."""

from __future__ import annotations

from typing import Any

import pytest

from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.errors import RequestError


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"top_k": -2},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 2.5},
        {"frequency_penalty": -3},
        {"seed": 1.5},
        {"stop": [""]},
        {"stop": [3]},
        {"stop": 3},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": ["</s>"]},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"min_tokens": -1},
        {"min_tokens": 5, "max_tokens": 4},
        {"logprobs": 21},
        {"logprobs": -1},
        {"logit_bias": {3: 200}},
        {"logit_bias": {"3": 1}},
        {"logit_bias": [3]},
        {"ignore_eos": 1},
        {"skip_special_tokens": None},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        SamplingParams(**wrong)


def test_unknown_names_and_positions_are_refused() -> None:
    with pytest.raises(TypeError):
        SamplingParams(temprature=1.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        SamplingParams(0.5)  # type: ignore[misc]


def test_spellings_are_normalised() -> None:
    params = SamplingParams(stop="\n\n", stop_token_ids=[3, 4], top_k=-1, max_tokens=None)
    assert params.stop == ("\n\n",) and params.stop_token_ids == (3, 4)
    assert SamplingParams(stop=["a", "b"]).stop_texts == ("a", "b")
    assert SamplingParams() == SamplingParams(temperature=0)


def test_greedy_is_the_default_and_tiny_temperatures_are_greedy() -> None:
    assert SamplingParams().greedy and SamplingParams(temperature=1e-9).greedy
    assert not SamplingParams(temperature=0.01).greedy
