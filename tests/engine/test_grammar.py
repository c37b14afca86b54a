"""Answers that keep to a schema, a regular expression or a grammar, whatever the model wants."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator

import pytest

from awqkit_runtime.engine.grammar import Grammar, check_grammar
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.errors import RequestError
from awqkit_runtime.llm import LLM
from tests.engine.chat_model import write_chat_model

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["glad", "sad"]},
    },
    "required": ["age", "mood"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = write_chat_model(tmp_path_factory.mktemp("chat"))
    with LLM(folder, cache_max_entry_count="16MiB", seed=1) as model:
        yield model


def answers(llm: LLM, kind: str, text: str, **more: object) -> list[str]:
    """Of a model with random weights, which would hardly hit on them by itself."""
    grammar = Grammar(kind=kind, text=text)  # type: ignore[arg-type]
    params = SamplingParams(grammar=grammar, **({"temperature": 1.0, "max_tokens": 200} | more))  # type: ignore[arg-type]
    done = llm.generate(["One", "Two", "Three"], params)
    assert {one.finish_reason for one in done} == {"stop"}
    return [one.text for one in done]


def test_json_schema(llm: LLM) -> None:
    for text in answers(llm, "json_schema", json.dumps(SCHEMA)):
        found = json.loads(text)
        assert set(found) == {"age", "mood"} and found["mood"] in ("glad", "sad")
        assert isinstance(found["age"], int) and 0 <= found["age"] <= 120


def test_regex_with_and_without_draws(llm: LLM) -> None:
    pattern = r"[A-Z][a-z]{2,5} ([0-9]{2}-){3}!"
    for temperature in (0.0, 2.0):
        for text in answers(llm, "regex", pattern, temperature=temperature):
            assert re.fullmatch(pattern, text), text


def test_lark(llm: LLM) -> None:
    text = 'start: "yes" | "no" number\nnumber: /[0-9]{3}/'
    assert all(re.fullmatch("yes|no[0-9]{3}", found) for found in answers(llm, "lark", text))


def test_the_grammar_outweighs_bias_and_eos(llm: LLM) -> None:
    more = {"logit_bias": {5: 100.0}, "ignore_eos": True, "min_tokens": 3}
    assert all(re.fullmatch("[ab]{12}", text) for text in answers(llm, "regex", "[ab]{12}", **more))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_the_grammar_leaves_stop_tokens_alone_they_end_the_answer(
    llm: LLM, temperature: float
) -> None:
    vocabulary = llm.tokenizer.get_vocab()
    digits = [token for text, token in vocabulary.items() if any(map(str.isdigit, text))]
    more = {"stop_token_ids": digits, "min_tokens": 9, "temperature": temperature}
    assert answers(llm, "regex", "ab[0-9]c", **more) == ["ab"] * 3


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_schema", "{"),
        ("json_schema", "[" * 5000),
        ("json_schema", '{"type": "nonsense"}'),
        ("json_schema", '{"not": {}}'),
        ("json_schema", '{"$ref": "http://127.0.0.1:1/schema"}'),
        ("regex", "(a"),
        ("regex", "a(?=b)"),
        ("lark", "start: nothing"),
        ("lark", ""),
        ("regex", "a" * 200_000),
        ("poem", "a"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_runs(
    llm: LLM, kind: str, text: str
) -> None:
    with pytest.raises(RequestError):
        check_grammar(Grammar(kind=kind, text=text))  # type: ignore[arg-type]
    with pytest.raises(RequestError):
        answers(llm, kind, text)
    assert llm.stats().running == llm.stats().waiting == 0


def test_an_explosive_pattern_ends_soon(llm: LLM) -> None:
    """Whether it is refused, given up or matched: the engine goes on."""
    params = SamplingParams(
        grammar=Grammar(kind="regex", text="(((a?){1,90}b?){1,90}c?){1,90}d"), max_tokens=5
    )
    with contextlib.suppress(RequestError):
        assert llm.generate("x", params)[0].finish_reason in ("stop", "length", "error")
    assert llm.generate("x", SamplingParams(max_tokens=2))[0].finish_reason == "length"
