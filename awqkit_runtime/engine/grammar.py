"""What an answer must match, and whether llguidance can use it.

llguidance is an optional dependency (the extra `serve`). It walks regular expressions in linear
time, bounds its own work for each token, and fetches nothing that a schema refers to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from awqkit_runtime.errors import RequestError

GrammarKind = Literal["json_schema", "regex", "lark"]
_NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar"}

#: Characters; a schema in the wild has a few thousand.
MAX_GRAMMAR_LENGTH = 2**17
#: Optional whitespace is where small models lose themselves, so JSON comes in Python's style.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """What an answer must match as a whole.

    text: a JSON schema as JSON, a regular expression (Rust's syntax, without look-around), or a
    grammar in llguidance's dialect of Lark. RequestError for another kind.
    """

    kind: GrammarKind
    text: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind) or not isinstance(self.text, str):
            raise RequestError(
                f"A grammar is a text, and its kind one of {', '.join(get_args(GrammarKind))}, "
                f"not {self.kind!r}."
            )
        if len(self.text) > MAX_GRAMMAR_LENGTH:
            raise RequestError(
                f"The {_NAMES[self.kind]} has {len(self.text)} characters; at most "
                f"{MAX_GRAMMAR_LENGTH} are taken."
            )


def check_grammar(grammar: Grammar) -> None:
    """RequestError for a grammar that cannot be used; takes milliseconds, and no vocabulary."""
    problem = matchers().validate_grammar(compiled(grammar))
    if problem:
        raise refusal(grammar, problem)


def matchers() -> Any:
    """The library's class of matchers; RequestError where it is not installed."""
    try:
        from llguidance import LLMatcher
    except ModuleNotFoundError as error:
        raise RequestError(
            "Grammars need the package llguidance. Install awqkit with its extra: "
            "pip install 'awqkit[serve]'."
        ) from error
    return LLMatcher


def compiled(grammar: Grammar) -> str:
    """In the library's own form; RequestError for text that has none."""
    library = matchers()
    if grammar.kind == "regex":
        return str(library.grammar_from_regex(grammar.text))
    if grammar.kind == "lark":
        return str(library.grammar_from_lark(grammar.text))
    try:
        json.loads(grammar.text)
        return str(library.grammar_from_json_schema(grammar.text, overrides=JSON_STYLE))
    except (ValueError, RecursionError) as error:
        raise refusal(grammar, str(error)) from error


def refusal(grammar: Grammar, reason: str) -> RequestError:
    """reason: the library's."""
    return RequestError(f"This {_NAMES[grammar.kind]} cannot be used: {reason.strip()}")
