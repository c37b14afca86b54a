"""Tools: how requests offer them, how conversations and answers hold their calls."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from awqkit_runtime.serve.protocol.sampling import RequestModel

MAX_TOOLS = 128

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class FunctionTool(RequestModel):
    name: ToolName
    description: str | None = None
    #: A JSON schema.
    parameters: dict[str, Any] | None = None
    #: Calls match the schema; those that are forced do so in either case.
    strict: bool | None = None


class Tool(RequestModel):
    type: Literal["function"]
    function: FunctionTool


class NamedFunction(RequestModel):
    name: ToolName


class NamedTool(RequestModel):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class CalledFunction(RequestModel):
    name: str
    #: JSON, as the model wrote it.
    arguments: str


class ToolCall(RequestModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ToolCallDelta(BaseModel):
    """A whole call: they come in one piece."""

    index: int
    id: str
    type: Literal["function"]
    function: CalledFunction
