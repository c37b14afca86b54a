"""Texts of single tokens."""

from __future__ import annotations

from typing import Any

from awqkit_runtime.serve.token_texts import TokenTexts


class Words:
    """Drops the space before a text's first token, as SentencePiece's decoders do."""

    words = ("▁the", "re", "▁", "é")

    def decode(self, token_ids: list[int], **options: Any) -> str:
        text = "".join(self.words[token] for token in token_ids).replace("▁", " ")
        return text.removeprefix(" ")


def test_a_token_keeps_the_space_before_it() -> None:
    texts = TokenTexts(Words())
    assert [texts.text(token) for token in range(4)] == [" the", "re", " ", "é"]
    told = texts.completion([0, 1], [{0: -0.5, 3: -1.0}, {3: -0.1, 1: -3.0}], 1, offset=2)
    assert told.tokens == [" the", "re"] and told.text_offset == [2, 6]
    assert told.top_logprobs == [{" the": -0.5}, {"é": -0.1, "re": -3.0}]
