"""Grammars of answers that must be a call, or whose calls must match what they call.

In llguidance's dialect of Lark; a token that the tokenizer treats as one is written by its id,
since no text can stand for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from awqkit_runtime.engine.grammar import JSON_STYLE, Grammar
from awqkit_runtime.errors import RequestError
from awqkit_runtime.serve.tools.formats import ToolFormat

Function = Mapping[str, Any]


def forced_call(
    format: ToolFormat, functions: Sequence[Function], added_tokens: Mapping[str, int]
) -> Grammar:
    """One call of one of the functions, with arguments that match its schema.

    added_tokens: ids of the tokenizer's added tokens.
    """
    rules = ["start: call", *_call_rules(format, functions, added_tokens)]
    return Grammar(kind="lark", text="\n".join(rules))


def free_calls(
    format: ToolFormat,
    functions: Sequence[Function],
    added_tokens: Mapping[str, int],
    *,
    many: bool,
    stop_token_ids: Collection[int],
) -> Grammar:
    """Any text, and calls in it, whose arguments match the schemas of strict functions.

    many: whether there may be several calls. RequestError where a call's opening is no token of
    the tokenizer's own: text up to it could not be told from text without it.
    """
    if _split(format.opening, added_tokens)[0] not in added_tokens:
        raise RequestError(
            f"strict needs a model with a token {format.opening}, which this one lacks, unless "
            "tool_choice demands a call. Leave strict out."
        )
    loose = [f if f.get("strict") else {**f, "parameters": {"type": "object"}} for f in functions]
    rules = [
        f"start: text? (call text?){'*' if many else '?'}",
        *_text_rules(format, added_tokens, stop_token_ids),
        *_call_rules(format, loose, added_tokens),
    ]
    if format.bare:
        rules[0] = f"start: text? call? | objects\nobjects: object{' (/; ?/ object)*' * many}"
    return Grammar(kind="lark", text="\n".join(rules))


def _call_rules(
    format: ToolFormat, functions: Sequence[Function], added_tokens: Mapping[str, int]
) -> list[str]:
    opening = [*_marker(format.opening, added_tokens), *([] if format.bare else ['"\\n"'])]
    closing = _marker(format.closing, added_tokens)
    objects = [f"object_{index}" for index in range(len(functions))]
    rules = [f"call: {' '.join([*opening, 'object', *closing])}", f"object: {' | '.join(objects)}"]
    for index, function in enumerate(functions):
        start = f'{{"name": {json.dumps(function["name"])}, "{format.arguments_key}": '
        rules += [
            f'object_{index}: {json.dumps(start)} arguments_{index} "}}"',
            f"arguments_{index}: %json {json.dumps(_arguments(function))}",
        ]
    return rules


def _text_rules(
    format: ToolFormat, added_tokens: Mapping[str, int], stop_token_ids: Collection[int]
) -> list[str]:
    """Text, and, at its start, none that a reader takes for a bare call."""
    opening = added_tokens[_split(format.opening, added_tokens)[0]]
    others = sorted({*added_tokens.values()} - {opening, *stop_token_ids})
    parts = f" | FIRST? (<[{','.join(map(str, others))}]> WORDS?)+" if others else ""
    first = "WORDS & ~/\\s*\\{(?s:.*)/" if format.bare else "WORDS"
    return [f"text: FIRST{parts}", f"FIRST: {first}", "WORDS: /(?s:.+)/"]


def _arguments(function: Function) -> dict[str, Any]:
    """The schema of the arguments, as the root that its references start from."""
    schema = function.get("parameters") or {"type": "object", "additionalProperties": False}
    return {**schema, "x-guidance": JSON_STYLE}


def _marker(text: str, added_tokens: Mapping[str, int]) -> list[str]:
    """A marker in Lark."""
    return [
        f"<[{added_tokens[part]}]>" if part in added_tokens else json.dumps(part)
        for part in _split(text, added_tokens)
    ]


def _split(text: str, added_tokens: Collection[str]) -> list[str]:
    """Added tokens by themselves, and the texts between."""
    longest_first = sorted(added_tokens, key=len, reverse=True)
    pattern = f"({'|'.join(map(re.escape, longest_first))})" if added_tokens else "(?!)"
    return [part for part in re.split(pattern, text) if part]
