"""Log-probabilities with the texts of their tokens, in OpenAI's two forms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from awqkit_runtime.engine.detokenizer import REPLACEMENT, TextDecoder
from awqkit_runtime.engine.request import TokenLogprobs
from awqkit_runtime.serve.protocol.chat import TokenLogprob, TopLogprob
from awqkit_runtime.serve.protocol.completions import CompletionLogprobs

_KEPT_TEXTS = 2**15


class TokenTexts:
    """Texts of single tokens. Where a token is but a part of a character, its bytes are unknown."""

    def __init__(self, tokenizer: TextDecoder) -> None:
        self._tokenizer = tokenizer
        self.text = lru_cache(_KEPT_TEXTS)(self._text)

    def _text(self, token: int) -> str:
        """As it is inside a text: decoders drop the space before a text's first token."""
        once, twice = self._decode([token]), self._decode([token, token])
        return twice[len(once) :] if twice.startswith(once) else once

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False)

    def chat(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs], top: int
    ) -> list[TokenLogprob]:
        """One entry per token, each with the `top` likeliest."""
        return [
            TokenLogprob(
                **dict(self._entry(token, found[token])),
                top_logprobs=[self._entry(*one) for one in list(found.items())[:top]],
            )
            for token, found in zip(tokens, logprobs, strict=True)
        ]

    def completion(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs], top: int, *, offset: int
    ) -> CompletionLogprobs:
        """offset: characters of the text before the first token.

        The chosen token is always among the likeliest, so there may be top + 1.
        """
        texts = [self.text(token) for token in tokens]
        offsets = [offset + sum(map(len, texts[:index])) for index in range(len(texts))]
        return CompletionLogprobs(
            tokens=texts,
            token_logprobs=[found[token] for token, found in zip(tokens, logprobs, strict=True)],
            top_logprobs=[
                {self.text(one): found[one] for one in dict.fromkeys([*list(found)[:top], token])}
                for token, found in zip(tokens, logprobs, strict=True)
            ],
            text_offset=offsets,
        )

    def _entry(self, token: int, logprob: float) -> TopLogprob:
        text = self.text(token)
        whole = REPLACEMENT not in text
        return TopLogprob(token=text, logprob=logprob, bytes=list(text.encode()) if whole else None)
