"""A model's tokenizer: texts to ids and back, by the tokenizers library alone.

The class of the transformers library does the same with the same backend, and takes seconds to
import; `checkpoint.transformers_tokenizer` makes one for those who want it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from awqkit.checkpoint.errors import TextError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class TextTokenizer:
    """Safe to use from several threads at once: nothing of it changes."""

    backend: Tokenizer
    #: Token texts by their role, such as bos_token; the vocabulary has all of them.
    named_tokens: Mapping[str, str]
    #: One template, or several by name; None without any.
    chat_template: str | Mapping[str, str] | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text. add_special_tokens: with bos and eos where the tokenizer adds them.

        TextError for half of a surrogate pair, as which Python reads bytes that are no UTF-8.
        """
        try:
            ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            # The library says that such a text is none.
            raise TextError(
                "The text holds bytes that are no UTF-8, or half of a surrogate pair; neither is a "
                "character. Give it in UTF-8."
            ) from error
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, on several cores."""
        return [encoding.ids for encoding in self.backend.encode_batch(texts)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ids."""
        text: str = self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def named_id(self, role: str) -> int | None:
        """The id of the token in this role, None where there is no such token."""
        text = self.named_tokens.get(role)
        return None if text is None else self.backend.token_to_id(text)

    @property
    def bos_token_id(self) -> int | None:
        return self.named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self.named_id("eos_token")

    @property
    def vocabulary(self) -> dict[str, int]:
        """Ids by token, added ones among them."""
        return dict(self.backend.get_vocab(with_added_tokens=True))

    @property
    def added_tokens(self) -> dict[int, AddedToken]:
        """Tokens that stand for themselves whatever text is around them, by id in their order."""
        return dict(sorted(self.backend.get_added_tokens_decoder().items()))
