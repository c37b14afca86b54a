"""The grammar of an answer that must be a call."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from awqkit_runtime.engine.grammar import JSON_STYLE, Grammar
from awqkit_runtime.serve.tools.formats import ToolFormat

_SPECIAL = re.compile(r"(<\|[^|<>]+\|>)")


def forced_call(
    format: ToolFormat, functions: Sequence[Mapping[str, Any]], special_tokens: Collection[str]
) -> Grammar:
    """One call of one of the functions, with arguments that match its schema.

    special_tokens: of the model; they are tokens in the grammar, not texts.
    """
    opening = [*_marker(format.opening, special_tokens), *([] if format.bare else ['"\\n"'])]
    closing = _marker(format.closing, special_tokens)
    calls = [f"call_{index}" for index in range(len(functions))]
    rules = [f"start: {' '.join([*opening, 'call', *closing])}", f"call: {' | '.join(calls)}"]
    for index, function in enumerate(functions):
        start = f'{{"name": {json.dumps(function["name"])}, "{format.arguments_key}": '
        rules += [
            f'call_{index}: {json.dumps(start)} arguments_{index} "}}"',
            f"arguments_{index}: %json {json.dumps(_arguments(function))}",
        ]
    return Grammar(kind="lark", text="\n".join(rules))


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of the arguments, as the root that its references start from."""
    schema = function.get("parameters") or {"type": "object", "additionalProperties": False}
    return {**schema, "x-guidance": JSON_STYLE}


def _marker(text: str, special_tokens: Collection[str]) -> list[str]:
    """A marker in Lark: special tokens by their names, the rest as text."""
    parts = [part for part in _SPECIAL.split(text) if part]
    return [part if part in special_tokens else json.dumps(part) for part in parts]
