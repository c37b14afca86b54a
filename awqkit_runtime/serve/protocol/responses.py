"""/v1/responses in its text part: bodies of requests and answers, events of a stream."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from awqkit_runtime.engine.grammar import Grammar
from awqkit_runtime.serve.errors import ErrorDetail
from awqkit_runtime.serve.protocol.chat import MAX_PARTS
from awqkit_runtime.serve.protocol.formats import JsonObjectFormat, TextFormat, json_grammar
from awqkit_runtime.serve.protocol.sampling import (
    Count,
    RequestModel,
    SamplingFields,
    at_most,
)

NoItems = Annotated[list[Any], Field(max_length=0)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    at_most(16),
]


class InputText(RequestModel):
    type: Literal["input_text"]
    text: str


class OutputText(RequestModel):
    """A part of an answer, as it was given, or as a client gives it back."""

    type: Literal["output_text"]
    text: str
    annotations: NoItems = Field(default_factory=list)
    logprobs: NoItems | None = None


class InputMessage(RequestModel):
    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer", "assistant"]
    content: (
        str
        | Annotated[
            list[InputText | OutputText], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS)
        ]
    )
    #: Of a message that was an answer; of no further use.
    id: str | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class NamedSchemaFormat(RequestModel):
    type: Literal["json_schema"]
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    #: Answers match the schema in either case.
    strict: bool | None = None


class TextSettings(RequestModel):
    format: (
        Annotated[TextFormat | JsonObjectFormat | NamedSchemaFormat, Field(discriminator="type")]
        | None
    ) = None


class ResponseRequest(SamplingFields):
    input: (
        str
        | Annotated[list[InputMessage], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS)]
    )
    instructions: str | None = None
    max_output_tokens: Count | None = None
    text: TextSettings | None = None
    stream: bool | None = None
    #: Nothing is kept.
    store: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    #: There are none.
    tools: NoItems | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    include: NoItems | None = None
    #: Given back as it is.
    metadata: Metadata | None = None

    @property
    def form_field(self) -> str:
        """The field that constraint() reads."""
        return "text.format"

    def constraint(self) -> Grammar | None:
        """What the answer must match. ApiError for a schema that is too long."""
        wanted = None if self.text is None else self.text.format
        if isinstance(wanted, NamedSchemaFormat):
            return json_grammar(wanted.schema_, param=self.form_field)
        if isinstance(wanted, JsonObjectFormat):
            return json_grammar({"type": "object"}, param=self.form_field)
        return None

    def messages(self) -> list[dict[str, Any]]:
        """The conversation as templates know it."""
        start = [] if self.instructions is None else [_message("system", self.instructions)]
        if isinstance(self.input, str):
            return [*start, _message("user", self.input)]
        return [*start, *(_input_message(message) for message in self.input)]


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def _input_message(message: InputMessage) -> dict[str, Any]:
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return _message("system" if message.role == "developer" else message.role, text)


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class InputDetails(BaseModel):
    cached_tokens: int


class OutputDetails(BaseModel):
    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(BaseModel):
    reason: Literal["max_output_tokens"]


class ResponseBody(BaseModel):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    error: None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: Literal[False] = False
    previous_response_id: None = None
    store: Literal[False] = False
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["none"] = "none"
    tools: NoItems = Field(default_factory=list)
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None
    metadata: dict[str, str]


class ResponseEvent(BaseModel):
    """One event of a stream; which fields it has follows from its type."""

    type: str
    sequence_number: int
    #: A ResponseBody with all of its fields.
    response: dict[str, Any] | None = None
    item: OutputMessage | None = None
    part: OutputText | None = None
    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    delta: str | None = None
    text: str | None = None
    logprobs: NoItems | None = None


class ErrorEvent(ErrorDetail):
    """The last event of a stream that failed; `error` is where other endpoints have it."""

    type: Literal["error"]
    sequence_number: int
    error: ErrorDetail


def error_event(detail: ErrorDetail, number: int) -> ErrorEvent:
    told = detail.model_dump() | {"type": "error"}
    return ErrorEvent(**told, sequence_number=number, error=detail)
