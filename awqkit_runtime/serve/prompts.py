"""From texts and conversations to tokens, beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from awqkit.checkpoint.errors import CheckpointError, ConversationError
from awqkit_runtime.engine.grammar import Grammar, check_grammar
from awqkit_runtime.engine.model_text import ModelText
from awqkit_runtime.errors import RequestError
from awqkit_runtime.serve.errors import ApiError, invalid

P = ParamSpec("P")
T = TypeVar("T")

#: Tokenizers release the interpreter's lock; more threads than this only get in each other's way.
_THREADS = 2
#: A token's text may have been somewhat longer before the tokenizer normalised it.
_NORMALISED = 4


class PromptEncoder:
    """A model's tokenizer and chat template, for many requests at once."""

    def __init__(self, text: ModelText, *, session_len: int) -> None:
        self.text = text
        self.session_len = session_len
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenizer")
        vocabulary = {} if text.tokenizer is None else text.tokenizer.vocabulary
        #: Characters; a longer text has too many tokens, which is known without counting them.
        self._longest_text = session_len * _NORMALISED * max(map(len, vocabulary), default=1)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function in one of the tokenizer's threads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))

    async def encode(self, prompt: str) -> list[int]:
        """Token ids of a plain text. ApiError where it is too long or cannot be encoded."""
        ids = await self.run(self._encode, prompt)
        return self._fitting(ids, param="prompt")

    async def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins."""
        ids = await self.run(self._encode_chat, messages, tools)
        return self._fitting(ids, param="messages")

    async def check_grammar(self, grammar: Grammar | None, *, param: str) -> None:
        """ApiError for a grammar that cannot be used."""
        if grammar is None:
            return
        try:
            await self.run(check_grammar, grammar)
        except RequestError as error:
            raise invalid(str(error), param=param) from error

    def check_tokens(self, ids: list[int]) -> list[int]:
        """A prompt that came as tokens."""
        return self._fitting(ids, param="prompt")

    def decode(self, ids: list[int]) -> str:
        """The text of a prompt that came as tokens."""
        if self.text.tokenizer is None:
            return ""
        return self.text.tokenizer.decode(ids)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _encode(self, prompt: str) -> list[int]:
        from awqkit.checkpoint.tokenizer import encode_prompt

        if self.text.tokenizer is None:
            raise invalid(
                "The model has no tokenizer, so it takes token ids alone.", param="prompt"
            )
        self._require_length(prompt, param="prompt")
        ids = encode_prompt(self.text.tokenizer, prompt)
        if not ids and self.text.bos_token_id is not None:
            return [self.text.bos_token_id]
        return ids

    def _encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int]:
        from awqkit.checkpoint.tokenizer import encode_rendered, render_chat_text

        if self.text.tokenizer is None:
            raise invalid("The model has no tokenizer, so it cannot chat.", param="messages")
        try:
            text = render_chat_text(self.text.tokenizer, messages, tools=tools)
        except (ConversationError, CheckpointError) as error:
            raise invalid(str(error), param="messages") from error
        self._require_length(text, param="messages")
        return encode_rendered(self.text.tokenizer, text)

    def _require_length(self, text: str, *, param: str) -> None:
        if len(text) > self._longest_text:
            raise self._too_long(f"{len(text)} characters, more than that many can have", param)

    def _fitting(self, ids: list[int], *, param: str) -> list[int]:
        if not ids:
            raise invalid("The prompt is empty: there is nothing to continue from.", param=param)
        if len(ids) >= self.session_len:
            raise self._too_long(f"{len(ids)}, and the answer needs at least one", param)
        return ids

    def _too_long(self, length: str, param: str) -> ApiError:
        return ApiError(
            400,
            f"This model's maximum context length is {self.session_len} tokens, but the prompt has "
            f"{length}. Shorten it.",
            param=param,
            code="context_length_exceeded",
        )
