"""Whatever a model wants: calls that are forced come, and calls of strict tools match them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from awqkit.checkpoint.tokenizer import TextTokenizer
from awqkit_runtime.engine.constraint import GrammarCompiler
from awqkit_runtime.engine.grammar import Grammar, check_grammar
from awqkit_runtime.errors import RequestError
from awqkit_runtime.serve.tools.formats import TOOL_FORMATS, ToolFormat
from awqkit_runtime.serve.tools.grammars import forced_call, free_calls
from awqkit_runtime.serve.tools.reader import Call, ToolReader
from tests.engine.tokenizers_for_tests import byte_level_tokenizer

pytest.importorskip("llguidance")

WEATHER: dict[str, Any] = {
    "name": "weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Köln"]}, "days": {"enum": [1, 2]}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
CLOCK = {"name": "clock", "strict": True}
MARKERS = {
    "qwen": ["<tool_call>", "</tool_call>"],
    "internlm": ["<|action_start|>", "<|plugin|>", "<|action_end|>"],
    "llama3": ["<|python_tag|>"],
}


def tokenizer(markers: list[str]) -> TextTokenizer:
    plain = byte_level_tokenizer()
    backend = copy.deepcopy(plain.backend)
    backend.add_tokens(["<think>", *markers])
    return replace(plain, backend=backend)


def added_tokens(words: TextTokenizer) -> dict[str, int]:
    return {token.content: index for index, token in words.added_tokens.items()}


def answer(words: TextTokenizer, grammar: Grammar, seed: int, beginning: str = "") -> str:
    """Of a model that says anything that it may, and ends as soon as it may."""
    check_grammar(grammar)
    rng = random.Random(seed)
    constraint = GrammarCompiler(words, len(words.vocabulary), [1]).compile(grammar)
    tokens = words.encode(beginning, add_special_tokens=False) if beginning else []
    for token in tokens:
        assert not constraint.forbidden()[token]
        constraint.accept(token)
    while not constraint.complete and len(tokens) < 300:
        allowed = (~constraint.forbidden()).nonzero().flatten().tolist()
        token = 1 if 1 in allowed and len(tokens) > 20 else rng.choice([*{*allowed} - {1}] or [1])
        constraint.accept(token)
        assert not constraint.failed
        tokens += [token] if token != 1 else []
        if token == 1:
            break
    return words.decode(tokens)


def read(format: ToolFormat, text: str) -> list[str | Call]:
    reader = ToolReader(format, many=True)
    return [*reader.push(text), *reader.finish()]


def check(call: str | Call) -> None:
    assert isinstance(call, Call) and call.name in ("weather", "clock"), call
    if call.name == "weather":
        arguments: Mapping[str, Any] = json.loads(call.arguments)
        assert set(arguments) == {"city", "days"}
        assert arguments["city"] in ("Paris", "Köln") and arguments["days"] in (1, 2)


@pytest.mark.parametrize("known", [True, False], ids=["tokens", "texts"])
@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_a_forced_call_is_one_call_and_nothing_else(name: str, known: bool) -> None:
    """known: the markers are tokens of the tokenizer's own, as in the real models."""
    words = tokenizer(MARKERS[name] if known else [])
    grammar = forced_call(TOOL_FORMATS[name], [WEATHER, CLOCK], added_tokens(words))
    for seed in range(4):
        [call] = read(TOOL_FORMATS[name], answer(words, grammar, seed))
        check(call)


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_calls_of_strict_tools_match_them(name: str) -> None:
    format, words = TOOL_FORMATS[name], tokenizer(MARKERS[name])
    added = added_tokens(words)
    grammar = free_calls(format, [WEATHER, CLOCK], added, many=True, stop_token_ids=[1])
    beginnings = ["", "Well, <think>a } thought", f"See: {format.opening}"]
    beginnings += ['{"name": "weather'] if format.bare else []
    for seed, beginning in enumerate(beginnings):
        text = answer(words, grammar, seed, beginning)
        assert text.startswith(beginning)
        found = read(format, text)
        calls = [part for part in found if isinstance(part, Call)]
        assert len(calls) >= (beginning.endswith(format.opening) or beginning.startswith("{"))
        for call in calls:
            check(call)
        assert not any(format.opening in part for part in found if isinstance(part, str))


def test_strict_is_refused_where_it_cannot_be_kept() -> None:
    with pytest.raises(RequestError, match="strict"):
        free_calls(TOOL_FORMATS["qwen"], [WEATHER], {"<s>": 0}, many=True, stop_token_ids=[1])


def test_one_call_where_one_is_wanted() -> None:
    format, words = TOOL_FORMATS["qwen"], tokenizer(MARKERS["qwen"])
    added = added_tokens(words)
    grammar = free_calls(format, [CLOCK], added, many=False, stop_token_ids=[1])
    constraint = GrammarCompiler(words, len(words.vocabulary), [1]).compile(grammar)
    call = '<tool_call>\n{"name": "clock", "arguments": {}}</tool_call>'
    for token in words.encode(call, add_special_tokens=False):
        assert not constraint.forbidden()[token]
        constraint.accept(token)
    assert constraint.forbidden()[added["<tool_call>"]]


def test_references_in_a_schema_start_at_its_own_root() -> None:
    schema = {"$defs": {"city": {"enum": ["Paris"]}}, "$ref": "#/$defs/city"}
    functions = [{"name": name, "parameters": schema} for name in ("a", "b")]
    check_grammar(forced_call(TOOL_FORMATS["qwen"], functions, {}))
