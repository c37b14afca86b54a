"""Which format a model knows, how its conversations show tools, and what a forced call is."""

from __future__ import annotations

import json
from typing import Any

from awqkit_runtime.serve.tools.formats import TOOL_FORMATS, find_format

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def test_the_format_follows_from_template_and_vocabulary() -> None:
    assert find_format("auto", "… <tool_call> …", {}) is TOOL_FORMATS["qwen"]
    assert find_format("auto", "… ipython …", {"<|python_tag|>": 7}) is TOOL_FORMATS["llama3"]
    assert find_format("auto", "…", {"<|action_start|>": 7}) is TOOL_FORMATS["internlm"]
    assert find_format("auto", "…", {}) is None
    assert find_format("none", "… <tool_call> …", {}) is None
    assert find_format("llama3", "…", {}) is TOOL_FORMATS["llama3"]


def test_internlm_conversations_hold_tools_calls_and_results() -> None:
    show = TOOL_FORMATS["internlm"].show
    assert show is not None
    call = {"id": "1", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    shown = show(
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "no", "tool_call_id": "1"},
        ],
        [TOOL],
    )
    assert [message["role"] for message in shown] == [
        "system",
        "system name=<|plugin|>",
        "user",
        "assistant",
        "environment name=<|plugin|>",
    ]
    assert json.loads(shown[1]["content"]) == [TOOL["function"]]
    assert shown[3]["content"] == (
        '<|action_start|><|plugin|>\n{"name": "weather", "parameters": {"city": "Paris"}}'
        "<|action_end|>"
    )
    plain = [{"role": "user", "content": "Rain?"}]
    assert show(plain, {}) == plain
