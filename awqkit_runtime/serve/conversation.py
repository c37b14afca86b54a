"""From a chat request to what templates know: messages, tools, and what a call must look like."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from awqkit_runtime.engine.grammar import Grammar
from awqkit_runtime.errors import RequestError
from awqkit_runtime.serve.errors import invalid
from awqkit_runtime.serve.protocol.chat import (
    AssistantMessage,
    ChatRequest,
    Content,
    Message,
    ToolMessage,
)
from awqkit_runtime.serve.protocol.formats import json_grammar
from awqkit_runtime.serve.protocol.tools import NamedTool, Tool, ToolCall
from awqkit_runtime.serve.service import Service
from awqkit_runtime.serve.tools.formats import ToolFormat
from awqkit_runtime.serve.tools.grammars import forced_call, free_calls


@dataclass(frozen=True, kw_only=True)
class Conversation:
    messages: list[dict[str, Any]]
    #: For the template; None where there are none or the messages show them.
    tools: list[dict[str, Any]] | None
    #: How calls are to be found in the answer; None where there can be none.
    reads: ToolFormat | None
    #: Fields of the request with what they demand; the last one's the whole answer must match.
    forms: list[tuple[str, Grammar]]

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must match."""
        return self.forms[-1][1] if self.forms else None


def read_conversation(body: ChatRequest, service: Service) -> Conversation:
    """ApiError for tools that the model does not know or that clash with other fields."""
    offered = body.offered_tools
    messages = [template_message(message) for message in body.messages]
    tools = [
        tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in offered
    ]
    format = service.tool_format
    if offered and format is None:
        raise invalid(
            "tools is not supported by this model: neither its chat template nor its vocabulary "
            "knows a format for them that this server reads.",
            param="tools",
            code="unsupported",
        )
    if format is not None and format.show is not None:
        messages = format.show(messages, tools)
    return Conversation(
        messages=messages,
        tools=tools if tools and format is not None and format.template_knows_tools else None,
        reads=format if offered else None,
        forms=_forms(body, offered, service),
    )


def template_message(message: Message) -> dict[str, Any]:
    """A message as chat templates know it."""
    role = "system" if message.role == "developer" else message.role
    told: dict[str, Any] = {"role": role, "content": text_of(message.content)}
    if message.name is not None:
        told["name"] = message.name
    if isinstance(message, ToolMessage):
        told["tool_call_id"] = message.tool_call_id
    elif isinstance(message, AssistantMessage) and message.tool_calls:
        told["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    return told


def text_of(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


def _template_call(call: ToolCall) -> dict[str, Any]:
    """Templates write the arguments as JSON themselves."""
    try:
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError) as error:
        raise invalid(
            f"The arguments of the call {call.id!r} are not JSON: {error}.", param="messages"
        ) from error
    return call.model_dump() | {"function": {"name": call.function.name, "arguments": arguments}}


def _forms(
    body: ChatRequest, offered: Sequence[Tool], service: Service
) -> list[tuple[str, Grammar]]:
    grammar = body.constraint()
    if not offered:
        return [] if grammar is None else [(body.form_field, grammar)]
    if grammar is not None:
        raise invalid(
            "tools and response_format, regex or grammar exclude each other: a call would break "
            "the form. Set tool_choice to none.",
            param="tools",
        )
    free = body.tool_choice in (None, "auto")
    if service.tool_format is None or (free and not any(t.function.strict for t in offered)):
        return []
    calls = _free if free else _forced
    return [*_schemas(offered), ("tools", calls(body, offered, service.tool_format, service))]


def _schemas(offered: Sequence[Tool]) -> list[tuple[str, Grammar]]:
    """Of each tool by itself, so that an error can say which one is wrong."""
    names = [f"tools.{number}.function.parameters" for number in range(len(offered))]
    return [
        (name, json_grammar(tool.function.parameters, param=name))
        for name, tool in zip(names, offered, strict=True)
        if tool.function.parameters
    ]


def _forced(
    body: ChatRequest, offered: Sequence[Tool], format: ToolFormat, service: Service
) -> Grammar:
    choice = body.tool_choice
    wanted = choice.function.name if isinstance(choice, NamedTool) else None
    chosen = [one for one in _functions(offered) if wanted in (None, one["name"])]
    if not chosen:
        raise invalid(f"tool_choice names {wanted!r}, which is not in tools.", param="tool_choice")
    with _short_enough():
        return forced_call(format, chosen, service.encoder.text.added_tokens)


def _free(
    body: ChatRequest, offered: Sequence[Tool], format: ToolFormat, service: Service
) -> Grammar:
    text = service.encoder.text
    many = body.parallel_tool_calls is not False
    stops = text.stop_token_ids
    with _short_enough():
        return free_calls(
            format, _functions(offered), text.added_tokens, many=many, stop_token_ids=stops
        )


def _functions(offered: Sequence[Tool]) -> list[dict[str, Any]]:
    return [tool.function.model_dump(exclude_none=True) for tool in offered]


@contextmanager
def _short_enough() -> Iterator[None]:
    """ApiError for tools that make too long a grammar."""
    try:
        yield
    except RequestError as error:
        raise invalid(str(error), param="tools") from error
