"""Answers that keep to a grammar: which tokens may come next, by llguidance.

llguidance is an optional dependency (the extra `serve`). It walks regular expressions in linear
time, bounds its own work for each token, and fetches nothing that a schema refers to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy
import torch
from torch import Tensor

from awqkit_runtime.errors import RequestError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from awqkit.checkpoint.tokenizer import TextTokenizer

GrammarKind = Literal["json_schema", "regex", "lark"]
_NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar"}

#: Characters; a schema in the wild has a few thousand.
MAX_GRAMMAR_LENGTH = 2**17
#: Compiled ones that are kept: requests come with the same few schemas again and again.
_KEPT_GRAMMARS = 16
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


class Constraint:
    """One answer on its way through a grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    @property
    def failed(self) -> bool:
        """Whether the grammar grew too complex for the library to go on."""
        return bool(self._matcher.is_error())

    def forbidden(self) -> Tensor:
        """bool [vocab]: tokens that cannot come next."""
        packed = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        bits = numpy.unpackbits(packed, count=self._vocab_size, bitorder="little")
        return torch.from_numpy(bits == 0)

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    def fork(self) -> Constraint:
        """Another answer that stands where this one does."""
        return Constraint(self._matcher.deep_copy(), self._vocab_size)


class GrammarCompiler:
    """Makes constraints for one model; its vocabulary is prepared when the first one is wanted."""

    def __init__(
        self, tokenizer: TextTokenizer, vocab_size: int, stop_token_ids: Iterable[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._stop_token_ids = sorted(stop_token_ids)
        self._prepared: LLTokenizer | None = None
        self._start = lru_cache(_KEPT_GRAMMARS)(self._compile)

    def compile(self, grammar: Grammar) -> Constraint:
        """RequestError for a grammar that the library cannot use."""
        return self._start(grammar).fork()

    def _compile(self, grammar: Grammar) -> Constraint:
        matchers = _matchers()
        matcher = matchers(self._vocabulary(), _compiled(grammar), log_level=0)
        if matcher.is_error():
            raise _refusal(grammar, matcher.get_error())
        return Constraint(matcher, self._vocab_size)

    def _vocabulary(self) -> LLTokenizer:
        if self._prepared is None:
            from llguidance import LLTokenizer

            self._prepared = LLTokenizer(
                self._tokenizer.backend.to_str(),
                n_vocab=self._vocab_size,
                eos_token=self._stop_token_ids,
            )
        return self._prepared


def check_grammar(grammar: Grammar) -> None:
    """RequestError for a grammar that cannot be used; takes milliseconds, and no vocabulary."""
    problem = _matchers().validate_grammar(_compiled(grammar))
    if problem:
        raise _refusal(grammar, problem)


def _matchers() -> Any:
    """The library's class of matchers; RequestError where it is not installed."""
    try:
        from llguidance import LLMatcher
    except ModuleNotFoundError as error:
        raise RequestError(
            "Grammars need the package llguidance. Install awqkit with its extra: "
            "pip install 'awqkit[serve]'."
        ) from error
    return LLMatcher


def _compiled(grammar: Grammar) -> str:
    matchers = _matchers()
    if grammar.kind == "regex":
        return str(matchers.grammar_from_regex(grammar.text))
    if grammar.kind == "lark":
        return str(matchers.grammar_from_lark(grammar.text))
    try:
        json.loads(grammar.text)
        return str(matchers.grammar_from_json_schema(grammar.text, overrides=JSON_STYLE))
    except (ValueError, RecursionError) as error:
        raise _refusal(grammar, str(error)) from error


def _refusal(grammar: Grammar, reason: str) -> RequestError:
    return RequestError(f"This {_NAMES[grammar.kind]} cannot be used: {reason.strip()}")
