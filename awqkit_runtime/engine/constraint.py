"""Answers that keep to a grammar: which tokens may come next, by llguidance."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from awqkit_runtime.engine.grammar import Grammar, compiled, matchers, refusal

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from awqkit.checkpoint.tokenizer import TextTokenizer

#: Compiled grammars that are kept: requests come with the same few schemas again and again.
_KEPT_GRAMMARS = 16


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
        matcher = matchers()(self._vocabulary(), compiled(grammar), log_level=0)
        if matcher.is_error():
            raise refusal(grammar, matcher.get_error())
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
