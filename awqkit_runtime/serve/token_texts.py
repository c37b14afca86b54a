"""Log-probabilities with the texts of their tokens, in OpenAI's two forms."""

from __future__ import annotations

from collections.abc import Sequence

from awqkit_runtime.engine.detokenizer import REPLACEMENT, TextDecoder
from awqkit_runtime.engine.request import TokenLogprobs
from awqkit_runtime.serve.protocol.chat import TokenLogprob, TopLogprob
from awqkit_runtime.serve.protocol.completions import CompletionLogprobs


class TokenTexts:
    """Texts of single tokens. Where a token is but a part of a character, its bytes are unknown."""

    def __init__(self, tokenizer: TextDecoder) -> None:
        self._tokenizer = tokenizer

    def text(self, token: int) -> str:
        text: str = self._tokenizer.decode(
            [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

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
        """offset: characters of the text before the first token."""
        texts = [self.text(token) for token in tokens]
        offsets = [offset + sum(map(len, texts[:index])) for index in range(len(texts))]
        return CompletionLogprobs(
            tokens=texts,
            token_logprobs=[found[token] for token, found in zip(tokens, logprobs, strict=True)],
            top_logprobs=[
                {self.text(token): value for token, value in list(found.items())[:top]}
                for found in logprobs
            ],
            text_offset=offsets,
        )

    def _entry(self, token: int, logprob: float) -> TopLogprob:
        text = self.text(token)
        whole = REPLACEMENT not in text
        return TopLogprob(token=text, logprob=logprob, bytes=list(text.encode()) if whole else None)
