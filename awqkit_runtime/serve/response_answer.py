"""From the engine's pieces to a response, at once or event by event."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from itertools import count
from typing import Any, Literal

from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.serve.job import Job
from awqkit_runtime.serve.protocol.responses import (
    Incomplete,
    InputDetails,
    OutputDetails,
    OutputMessage,
    OutputText,
    ResponseBody,
    ResponseEvent,
    ResponseRequest,
    ResponseUsage,
)

_Status = Literal["in_progress", "completed", "incomplete"]


class ResponseAnswer:
    """One use: either whole() or events()."""

    def __init__(self, job: Job, body: ResponseRequest, params: SamplingParams) -> None:
        self._job = job
        self._body = body
        self._params = params
        self._text = ""
        self._status: _Status = "in_progress"
        self._numbers = count()
        self._item_id = f"msg_{job.id}"

    async def whole(self) -> ResponseBody:
        async for _ in self._texts():
            pass
        return self._response([self._item()])

    async def events(self) -> AsyncGenerator[ResponseEvent]:
        """OpenAI's sequence for one message with one text."""
        at = {"output_index": 0}
        inside = at | {"item_id": self._item_id, "content_index": 0}
        texts = self._texts()
        first = await anext(texts, "")
        begun = self._response([]).model_dump()
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        yield self._event("response.output_item.added", item=self._item(empty=True), **at)
        yield self._event("response.content_part.added", part=_part(""), **inside)
        if first:
            yield self._delta(first, inside)
        async for text in texts:
            yield self._delta(text, inside)
        whole = {"text": self._text, "logprobs": []}
        yield self._event("response.output_text.done", **whole, **inside)
        yield self._event("response.content_part.done", part=_part(self._text), **inside)
        yield self._event("response.output_item.done", item=self._item(), **at)
        done = self._response([self._item()]).model_dump()
        yield self._event(f"response.{self._status}", response=done)

    async def _texts(self) -> AsyncGenerator[str]:
        async for piece in self._job.pieces():
            self._text += piece.text
            if piece.finish_reason is not None:
                self._status = "incomplete" if piece.finish_reason == "length" else "completed"
            if piece.text:
                yield piece.text

    def _event(self, type: str, **fields: Any) -> ResponseEvent:
        return ResponseEvent(type=type, sequence_number=next(self._numbers), **fields)

    def _delta(self, text: str, inside: dict[str, Any]) -> ResponseEvent:
        return self._event("response.output_text.delta", delta=text, logprobs=[], **inside)

    def _item(self, *, empty: bool = False) -> OutputMessage:
        return OutputMessage(
            id=self._item_id,
            type="message",
            role="assistant",
            status=self._status,
            content=[] if empty else [_part(self._text)],
        )

    def _response(self, output: list[OutputMessage]) -> ResponseBody:
        body, done = self._body, bool(output)
        cut = done and self._status == "incomplete"
        return ResponseBody(
            id=f"resp_{self._job.id}",
            created_at=self._job.created,
            status=self._status if done else "in_progress",
            incomplete_details=Incomplete(reason="max_output_tokens") if cut else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            model=body.model,
            output=output,
            temperature=self._params.temperature,
            text=_settings(body),
            top_p=self._params.top_p,
            usage=self._usage() if done else None,
            metadata=body.metadata or {},
        )

    def _usage(self) -> ResponseUsage:
        counted = self._job.usage()
        return ResponseUsage(
            input_tokens=counted.prompt_tokens,
            input_tokens_details=InputDetails(cached_tokens=self._job.cached_tokens),
            output_tokens=counted.completion_tokens,
            output_tokens_details=OutputDetails(reasoning_tokens=0),
            total_tokens=counted.total_tokens,
        )


def _part(text: str) -> OutputText:
    return OutputText(type="output_text", text=text, annotations=[], logprobs=[])


def _settings(body: ResponseRequest) -> dict[str, Any]:
    wanted = None if body.text is None else body.text.format
    told = {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True)
    return {"format": told}
