"""How models of the known kinds write calls of tools, and how their prompts show tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """A call is `opening`, a JSON object with the name and the arguments, `closing`."""

    opening: str
    #: Empty where a call ends with the answer.
    closing: str
    #: The member of the object that holds the arguments; the other one is "name".
    arguments_key: str
    #: A call may also stand without its opening, when it is the whole answer.
    bare: bool = False
    #: The messages that the template gets; None: the template itself knows tools.
    show: Callable[[list[Message], Tools], list[Message]] | None = None

    @property
    def template_knows_tools(self) -> bool:
        return self.show is None


def _show_to_internlm(messages: list[Message], tools: Tools) -> list[Message]:
    """InternLM2.5's conversations: tools, calls and results as texts of messages with names.

    Source: the model's chat format document (InternLM, chat/chat_format.md).
    """
    functions = json.dumps([dict(tool["function"]) for tool in tools], ensure_ascii=False)
    shown = [_internlm_message(message) for message in messages]
    system = next((i for i, message in enumerate(shown) if message["role"] != "system"), 0)
    offer = {"role": "system name=<|plugin|>", "content": functions}
    return [*shown[:system], offer, *shown[system:]] if tools else shown


def _internlm_message(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "environment name=<|plugin|>", "content": message["content"]}
    content = message["content"]
    for call in message.get("tool_calls", ()):
        function = call["function"]
        written = {"name": function["name"], "parameters": function["arguments"]}
        text = json.dumps(written, ensure_ascii=False)
        content += f"<|action_start|><|plugin|>\n{text}<|action_end|>"
    return {"role": message["role"], "content": content}


TOOL_FORMATS = {
    "internlm": ToolFormat(
        opening="<|action_start|><|plugin|>",
        closing="<|action_end|>",
        arguments_key="parameters",
        show=_show_to_internlm,
    ),
    "llama3": ToolFormat(
        opening="<|python_tag|>", closing="", arguments_key="parameters", bare=True
    ),
    "qwen": ToolFormat(opening="<tool_call>", closing="</tool_call>", arguments_key="arguments"),
}


def find_format(wanted: str, template: str, vocabulary: Mapping[str, int]) -> ToolFormat | None:
    """The format named, or for "auto" the one that template and vocabulary speak of, if any."""
    if wanted != "auto":
        return TOOL_FORMATS.get(wanted)
    if "<tool_call>" in template:
        return TOOL_FORMATS["qwen"]
    if "<|python_tag|>" in vocabulary and "ipython" in template:
        return TOOL_FORMATS["llama3"]
    if "<|action_start|>" in vocabulary:
        return TOOL_FORMATS["internlm"]
    return None
