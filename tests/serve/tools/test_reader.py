"""Calls of tools in answers that come in pieces, cut anywhere."""

from __future__ import annotations

import json
import random

import pytest

from awqkit_runtime.serve.tools.formats import TOOL_FORMATS
from awqkit_runtime.serve.tools.reader import Call, ToolReader

PARIS = Call(name="weather", arguments='{"city": "Paris", "days": 2}')
TIME = Call(name="time", arguments="{}")

#: Format, answer, text before calls, calls.
ANSWERS = [
    ("qwen", "Just text <tool_cal and more", "Just text <tool_cal and more", []),
    (
        "qwen",
        'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n'
        '</tool_call>\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
        "Let me see.\n",
        [PARIS, TIME],
    ),
    (
        "qwen",
        '<tool_call>{"name": "weather", "arguments": {"city": "Paris", "days": 2}}',
        "",
        [PARIS],
    ),
    ("qwen", "<tool_call>\nbroken {\n</tool_call>", "<tool_call>\nbroken {\n</tool_call>", []),
    (
        "qwen",
        '<tool_call>{"name": "f", "arguments": 3}</tool_call>',
        '<tool_call>{"name": "f", "arguments": 3}</tool_call>',
        [],
    ),
    (
        "internlm",
        'Well.<|action_start|><|plugin|>\n{"name": "weather", "parameters": {"city": "Paris", '
        '"days": 2}}<|action_end|>\n',
        "Well.",
        [PARIS],
    ),
    (
        "llama3",
        '{"name": "weather", "parameters": {"city": "Paris", "days": 2}}; {"name": "time", '
        '"parameters": {}}',
        "",
        [PARIS, TIME],
    ),
    (
        "llama3",
        '<|python_tag|>{"type": "function", "name": "weather", "parameters": {"city": "Paris", '
        '"days": 2}}',
        "",
        [PARIS],
    ),
    ("llama3", "{not a call}", "{not a call}", []),
    ("llama3", '{"answer": 42}', '{"answer": 42}', []),
    ("llama3", "Hello {you}", "Hello {you}", []),
]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("name", "answer", "text", "calls"), ANSWERS)
def test_every_cut_gives_the_same(
    name: str, answer: str, text: str, calls: list[Call], seed: int
) -> None:
    rng = random.Random(seed)
    reader = ToolReader(TOOL_FORMATS[name], many=True)
    found: list[str | Call] = []
    rest = answer
    while rest:
        size = rng.choice([1, 1, 2, 5, 40])
        found += reader.push(rest[:size])
        rest = rest[size:]
    found += reader.finish()
    assert [part for part in found if isinstance(part, Call)] == calls
    assert "".join(part for part in found if isinstance(part, str)) == text


def test_only_the_first_call_counts_where_one_was_asked_for() -> None:
    for name, answer, _, calls in ANSWERS:
        reader = ToolReader(TOOL_FORMATS[name], many=False)
        found = [*reader.push(answer), *reader.finish()]
        assert [part for part in found if isinstance(part, Call)] == calls[:1]


def test_deeply_nested_nonsense_is_text() -> None:
    reader = ToolReader(TOOL_FORMATS["qwen"], many=True)
    nonsense = "<tool_call>" + "[" * 100_000 + "</tool_call>"
    assert "".join(map(str, [*reader.push(nonsense), *reader.finish()])) == nonsense


def test_arguments_are_json() -> None:
    reader = ToolReader(TOOL_FORMATS["qwen"], many=True)
    [call] = reader.push('<tool_call>{"name": "f", "arguments": {"a": "é\\n"}}</tool_call>')
    assert isinstance(call, Call) and json.loads(call.arguments) == {"a": "é\n"}
