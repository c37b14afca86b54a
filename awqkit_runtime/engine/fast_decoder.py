"""The few tokens that a step adds to a text, decoded without doing the same twice."""

from __future__ import annotations

from functools import lru_cache

from awqkit_runtime.engine.detokenizer import TextDecoder

#: Texts of single tokens that are kept: those of most steps, in a few MiB.
_KEPT_TOKENS = 2**15


class FastDecoder:
    """Decodes as the tokenizer does, and remembers the texts of single tokens."""

    def __init__(self, tokenizer: TextDecoder) -> None:
        self._decode = tokenizer.decode
        self._decode_one = lru_cache(_KEPT_TOKENS)(self._decode_single)

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
        """The tokens' text."""
        if len(token_ids) == 1:
            return self._decode_one(token_ids[0], skip_special_tokens)
        return self._decode(token_ids, skip_special_tokens=skip_special_tokens)

    def _decode_single(self, token_id: int, skip_special_tokens: bool) -> str:
        return self._decode([token_id], skip_special_tokens=skip_special_tokens)
