"""The few tokens that a step adds to a text, decoded without detours."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from awqkit_runtime.engine.detokenizer import TextDecoder

#: Texts of single tokens that are kept: those of most steps, in a few MiB.
_KEPT_TOKENS = 2**15


def fast_decoder(tokenizer: TextDecoder) -> TextDecoder:
    """Decodes as the tokenizer does; transformers' fast ones are asked past their own layers.

    Those convert types and look for clean-up rules on each call, which takes longer than decoding
    two tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return tokenizer if backend is None else _BackendDecoder(backend)


class _BackendDecoder:
    def __init__(self, backend: Any) -> None:
        """backend: a tokenizers.Tokenizer."""
        self._decode = backend.decode
        self._decode_one = lru_cache(_KEPT_TOKENS)(self._decode_single)

    def decode(
        self,
        token_ids: list[int],
        /,
        *,
        skip_special_tokens: bool,
        clean_up_tokenization_spaces: bool,
    ) -> str:
        """The tokens' text; ValueError where spaces should be cleaned up."""
        if clean_up_tokenization_spaces:
            raise ValueError("the pieces of a text cannot be cleaned up one by one")
        if len(token_ids) == 1:
            return self._decode_one(token_ids[0], skip_special_tokens)
        text: str = self._decode(token_ids, skip_special_tokens)
        return text

    def _decode_single(self, token_id: int, skip_special_tokens: bool) -> str:
        text: str = self._decode([token_id], skip_special_tokens)
        return text
