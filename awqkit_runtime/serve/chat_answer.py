"""From the engine's pieces to a chat completion, at once or chunk by chunk."""

from __future__ import annotations

import secrets
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
from awqkit_runtime.serve.protocol.sampling import Usage, wants_usage
from awqkit_runtime.serve.protocol.tools import CalledFunction, ToolCall, ToolCallDelta
from awqkit_runtime.serve.token_texts import TokenTexts
from awqkit_runtime.serve.tools.formats import ToolFormat
from awqkit_runtime.serve.tools.reader import Call, ToolReader
from awqkit_runtime.serve.worker.messages import Piece


@dataclass(kw_only=True)
class _Choice:
    """One answer so far; `tokens` are those whose log-probabilities were not told yet."""

    reader: ToolReader | None
    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    finish_reason: str | None = None
    started: bool = False
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def add(self, piece: Piece) -> list[str | ToolCall]:
        """What a piece brings: texts, and calls."""
        if piece.logprobs is not None:
            self.tokens += piece.token_ids
            self.logprobs += piece.logprobs
        found = [part if isinstance(part, str) else _tool_call(part) for part in self._read(piece)]
        self.text += "".join(part for part in found if isinstance(part, str))
        self.calls += [part for part in found if not isinstance(part, str)]
        if piece.finish_reason is not None:
            self.finish_reason = "tool_calls" if self.calls else piece.finish_reason
        return found

    def _read(self, piece: Piece) -> list[str | Call]:
        if self.reader is None:
            return [piece.text] if piece.text else []
        found = self.reader.push(piece.text)
        return found if piece.finish_reason is None else [*found, *self.reader.finish()]


class ChatAnswer:
    """One use: either whole() or chunks()."""

    def __init__(
        self, job: Job, body: ChatRequest, texts: TokenTexts, reads: ToolFormat | None
    ) -> None:
        """reads: how calls of tools are to be found; None: there are none."""
        self._job = job
        self._body = body
        self._texts = texts
        self._id = f"chatcmpl-{job.id}"
        many = body.parallel_tool_calls is not False
        self._choices = [
            _Choice(reader=None if reads is None else ToolReader(reads, many=many))
            for _ in range(body.n or 1)
        ]

    async def whole(self) -> ChatCompletion:
        """The completion when all choices have ended."""
        async for piece in self._job.pieces():
            self._choices[piece.choice].add(piece)
        return ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._job.created,
            model=self._body.model,
            choices=[self._whole_choice(*one) for one in enumerate(self._choices)],
            usage=self._job.usage(),
        )

    async def chunks(self) -> AsyncGenerator[ChatChunk]:
        """Chunks as pieces come, and at the end one that counts tokens, where it is wanted."""
        async for piece in self._job.pieces():
            choice = self._choices[piece.choice]
            if not choice.started:
                choice.started = True
                yield self._chunk(piece.choice, Delta(role="assistant", content=""))
            known = len(choice.calls)
            for part in choice.add(piece):
                delta = Delta(content=part) if isinstance(part, str) else _call_delta(part, known)
                known += not isinstance(part, str)
                yield self._chunk(piece.choice, delta, self._logprobs(choice))
            if choice.finish_reason is not None:
                rest = self._logprobs(choice) if choice.tokens else None
                yield self._chunk(piece.choice, Delta(), rest, choice.finish_reason)
        if wants_usage(self._body.stream_options):
            yield self._frame([], self._job.usage())

    def _whole_choice(self, index: int, choice: _Choice) -> ChatChoice:
        calls = {"tool_calls": choice.calls} if choice.calls else {}
        return ChatChoice(
            index=index,
            message=AnswerMessage(
                role="assistant",
                content=choice.text or (None if choice.calls else ""),
                refusal=None,
                **calls,
            ),
            logprobs=self._logprobs(choice),
            finish_reason=choice.finish_reason or "",
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

    def _frame(self, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatChunk:
        counted = {"usage": usage} if wants_usage(self._body.stream_options) else {}
        return ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._job.created,
            model=self._body.model,
            choices=choices,
            **counted,
        )


def _tool_call(call: Call) -> ToolCall:
    return ToolCall(
        id=f"call_{secrets.token_hex(12)}",
        type="function",
        function=CalledFunction(name=call.name, arguments=call.arguments),
    )


def _call_delta(call: ToolCall, index: int) -> Delta:
    return Delta(tool_calls=[ToolCallDelta(index=index, **dict(call))])
