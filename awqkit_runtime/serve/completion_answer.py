"""From the engine's pieces to a completion, at once or piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from awqkit_runtime.engine.request import TokenLogprobs
from awqkit_runtime.serve.job import Job
from awqkit_runtime.serve.protocol.completions import (
    CompletionBody,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from awqkit_runtime.serve.protocol.sampling import Usage, wants_usage
from awqkit_runtime.serve.token_texts import TokenTexts


@dataclass(kw_only=True)
class _Choice:
    """One answer so far; `tokens` are those whose log-probabilities were not told yet."""

    text: str = ""
    #: Where the text of the next token begins.
    offset: int = 0
    finish_reason: str | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class CompletionAnswer:
    def __init__(
        self, job: Job, body: CompletionRequest, texts: TokenTexts, echoes: list[str]
    ) -> None:
        """echoes: what each choice's text begins with."""
        self._job = job
        self._body = body
        self._texts = texts
        self._echoes = echoes

    async def whole(self) -> CompletionBody:
        """The completion when all choices have ended."""
        choices = [_Choice(text=echo) for echo in self._echoes]
        async for piece in self._job.pieces():
            choice = choices[piece.choice]
            choice.text += piece.text
            choice.tokens += piece.token_ids
            choice.logprobs += piece.logprobs or []
            choice.finish_reason = piece.finish_reason
        told = [self._told(index, choice) for index, choice in enumerate(choices)]
        return self._frame(told, usage=self._job.usage())

    async def chunks(self) -> AsyncGenerator[CompletionBody]:
        """Pieces as they come, and at the end one that counts tokens, where it is wanted."""
        counts = wants_usage(self._body.stream_options)
        uncounted: dict[str, None] = {"usage": None} if counts else {}
        choices = [_Choice(text=echo) for echo in self._echoes]
        async for piece in self._job.pieces():
            choice = choices[piece.choice]
            choice.text += piece.text
            choice.tokens += piece.token_ids
            choice.logprobs += piece.logprobs or []
            choice.finish_reason = piece.finish_reason
            if choice.text or piece.finish_reason is not None:
                yield self._frame([self._told(piece.choice, choice)], **uncounted)
                choice.text = ""
        if counts:
            yield self._frame([], usage=self._job.usage())

    def _told(self, index: int, choice: _Choice) -> CompletionChoice:
        return CompletionChoice(
            index=index,
            text=choice.text,
            logprobs=self._logprobs(choice),
            finish_reason=choice.finish_reason,
        )

    def _logprobs(self, choice: _Choice) -> CompletionLogprobs | None:
        """Of the tokens since the last time."""
        wanted = self._body.logprobs
        if wanted is None:
            return None
        told = self._texts.completion(choice.tokens, choice.logprobs, wanted, offset=choice.offset)
        choice.offset += sum(map(len, told.tokens))
        choice.tokens, choice.logprobs = [], []
        return told

    def _frame(self, choices: list[CompletionChoice], **usage: Usage | None) -> CompletionBody:
        job = self._job
        return CompletionBody(
            id=f"cmpl-{job.id}",
            object="text_completion",
            created=job.created,
            model=self._body.model,
            choices=choices,
            **usage,
        )
