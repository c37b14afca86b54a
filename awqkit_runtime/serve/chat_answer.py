"""From the engine's pieces to a chat completion, at once or chunk by chunk."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from awqkit_runtime.engine.request import TokenLogprobs
from awqkit_runtime.serve.job import Job
from awqkit_runtime.serve.protocol.chat import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
)
from awqkit_runtime.serve.protocol.sampling import Usage
from awqkit_runtime.serve.token_texts import TokenTexts
from awqkit_runtime.serve.worker.messages import Piece


@dataclass(kw_only=True)
class _Choice:
    """One answer so far; `tokens` are those whose log-probabilities were not told yet."""

    text: str = ""
    finish_reason: str = ""
    started: bool = False
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class ChatAnswer:
    def __init__(self, job: Job, body: ChatRequest, texts: TokenTexts) -> None:
        self._job = job
        self._body = body
        self._texts = texts
        self._id = f"chatcmpl-{job.id}"
        self._choices = [_Choice() for _ in range(body.n or 1)]

    async def whole(self) -> ChatCompletion:
        """The completion when all choices have ended."""
        async for piece in self._job.pieces():
            self._add(piece).text += piece.text
        return ChatCompletion(
            id=self._id,
            created=self._job.created,
            model=self._body.model,
            choices=[self._whole_choice(*one) for one in enumerate(self._choices)],
            usage=self._job.usage(),
        )

    async def chunks(self) -> AsyncGenerator[ChatChunk]:
        """Chunks as pieces come, and at the end one that counts tokens, where it is wanted."""
        async for piece in self._job.pieces():
            choice = self._add(piece)
            if not choice.started:
                choice.started = True
                yield self._chunk(piece.choice, Delta(role="assistant", content=""))
            if piece.text:
                yield self._chunk(piece.choice, Delta(content=piece.text), self._logprobs(choice))
            if piece.finish_reason is not None:
                rest = self._logprobs(choice) if choice.tokens else None
                yield self._chunk(piece.choice, Delta(), rest, choice.finish_reason)
        options = self._body.stream_options
        if options is not None and options.include_usage:
            yield self._frame([], usage=self._job.usage())

    def _add(self, piece: Piece) -> _Choice:
        choice = self._choices[piece.choice]
        if piece.logprobs is not None:
            choice.tokens += piece.token_ids
            choice.logprobs += piece.logprobs
        choice.finish_reason = piece.finish_reason or ""
        return choice

    def _whole_choice(self, index: int, choice: _Choice) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=AnswerMessage(role="assistant", content=choice.text),
            logprobs=self._logprobs(choice),
            finish_reason=choice.finish_reason,
        )

    def _logprobs(self, choice: _Choice) -> ChoiceLogprobs | None:
        """Of the tokens since the last time."""
        if not self._body.logprobs:
            return None
        entries = self._texts.chat(choice.tokens, choice.logprobs, self._body.top_logprobs or 0)
        choice.tokens, choice.logprobs = [], []
        return ChoiceLogprobs(content=entries)

    def _chunk(
        self,
        index: int,
        delta: Delta,
        logprobs: ChoiceLogprobs | None = None,
        finish_reason: str | None = None,
    ) -> ChatChunk:
        return self._frame(
            [ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)]
        )

    def _frame(self, choices: list[ChunkChoice], **more: Usage) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._job.created,
            model=self._body.model,
            choices=choices,
            **more,
        )
