"""The grammar of an answer that must be a call."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from awqkit_runtime.engine.grammar import Grammar
from awqkit_runtime.serve.tools.formats import ToolFormat

_SPECIAL = re.compile(r"(<\|[^|<>]+\|>)")


def forced_call(
    format: ToolFormat, functions: Sequence[Mapping[str, Any]], special_tokens: Collection[str]
) -> Grammar:
    """One call of one of the functions, with arguments that match its schema.

    special_tokens: of the model; they are tokens in the grammar, not texts.
    """
    schemas = [_schema(function, format.arguments_key) for function in functions]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    parts = [
        *_marker(format.opening, special_tokens),
        *([] if format.bare else ['"\\n"']),
        f"%json {json.dumps(schema)}",
    ]
    rules = ["start: " + " ".join([*parts[:-1], "call", *_marker(format.closing, special_tokens)])]
    rules.append(f"call: {parts[-1]}")
    return Grammar(kind="lark", text="\n".join(rules))


def _schema(function: Mapping[str, Any], arguments_key: str) -> dict[str, Any]:
    parameters = function.get("parameters") or {"type": "object", "additionalProperties": False}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, arguments_key: parameters},
        "required": ["name", arguments_key],
        "additionalProperties": False,
    }


def _marker(text: str, special_tokens: Collection[str]) -> list[str]:
    """A marker in Lark: special tokens by their names, the rest as text."""
    parts = [part for part in _SPECIAL.split(text) if part]
    return [part if part in special_tokens else json.dumps(part) for part in parts]
