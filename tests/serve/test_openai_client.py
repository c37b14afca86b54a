"""OpenAI's own client, unmodified, in every call."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest

from tests.serve.servers import Server, texts

MESSAGES: Any = [
    {"role": "system", "content": "You are kind."},
    {"role": "user", "content": "Who are you?"},
]
GREEDY: Any = {"model": "demo", "temperature": 0}


def test_models(server: Server) -> None:
    client = server.client()
    [model] = client.models.list().data
    assert model.id == "demo" == client.models.retrieve("demo").id
    with pytest.raises(openai.NotFoundError, match="nothing"):
        client.models.retrieve("nothing")


def test_chat_whole_and_streamed_are_the_same(server: Server) -> None:
    ask: Any = server.client().chat.completions.create
    whole = ask(**GREEDY, messages=MESSAGES, max_completion_tokens=12)
    assert whole.choices[0].message.role == "assistant" and whole.choices[0].message.content
    assert whole.choices[0].finish_reason in ("stop", "length")
    used = whole.usage
    assert 0 < used.completion_tokens <= 12
    assert used.total_tokens == used.prompt_tokens + used.completion_tokens
    stream = ask(
        **GREEDY,
        messages=MESSAGES,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert texts(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == used.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all("usage" in chunk.model_fields_set for chunk in chunks)


def test_chat_without_limit_goes_on_to_the_session_length(server: Server) -> None:
    prompt = [{"role": "user", "content": "word " * 2000}]
    done: Any = server.client().chat.completions.create(
        **GREEDY, messages=prompt, extra_body={"ignore_eos": True}
    )
    assert done.usage.total_tokens == 2048 and done.choices[0].finish_reason == "length"


def test_choices_and_seeds(server: Server) -> None:
    def ask(**more: Any) -> list[str]:
        done: Any = server.client().chat.completions.create(
            model="demo", messages=MESSAGES, temperature=1.5, max_tokens=12, **more
        )
        assert [choice.index for choice in done.choices] == list(range(len(done.choices)))
        return [choice.message.content for choice in done.choices]

    four = ask(n=4, seed=7)
    assert len(set(four)) == 4
    assert ask(n=4, seed=7) == four and ask(n=1, seed=7) == four[:1]


def test_choices_share_their_prompt(server: Server) -> None:
    before = server.figures()
    prompt = [{"role": "user", "content": "quite a new prompt " * 60}]
    server.client().chat.completions.create(**GREEDY, messages=prompt, n=4, max_tokens=2)
    after = server.figures()
    new, reused = (
        after[f"awqkit_{name}_total"] - before[f"awqkit_{name}_total"]
        for name in ("admitted_tokens", "reused_tokens")
    )
    assert reused >= 3 * (new / 4 - 64)


def test_logprobs(server: Server) -> None:
    done: Any = server.client().chat.completions.create(
        **GREEDY, messages=MESSAGES, max_tokens=6, logprobs=True, top_logprobs=3
    )
    content = done.choices[0].logprobs.content
    assert len(content) == done.usage.completion_tokens
    for entry in content:
        assert len(entry.top_logprobs) == 3 and entry.logprob <= 0
        assert entry.token == entry.top_logprobs[0].token
        assert bytes(entry.bytes).decode() == entry.token
    stream = server.client().chat.completions.create(
        **GREEDY, messages=MESSAGES, max_tokens=6, logprobs=True, top_logprobs=3, stream=True
    )
    told = [e for c in stream if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert [entry.token for entry in told] == [entry.token for entry in content]


def test_stop_bias_and_penalties_change_the_answer(server: Server) -> None:
    def ask(**more: Any) -> Any:
        return server.client().completions.create(
            **GREEDY, prompt="Once upon a time", max_tokens=20, **more
        )

    plain = ask().choices[0]
    stop = plain.text[8:11]
    cut = ask(stop=[stop, "@@"]).choices[0]
    assert cut.finish_reason == "stop" and cut.text == plain.text[: plain.text.index(stop)]
    tokens = server.post("/tokenize", {"prompt": plain.text}).json()["tokens"]
    banned = {str(token): -100 for token in tokens[:8]}
    assert ask(logit_bias=banned).choices[0].text[:4] != plain.text[:4]
    assert ask(frequency_penalty=2, presence_penalty=2).choices[0].text != plain.text
    more = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.3, "ignore_eos": True}
    assert ask(extra_body=more).usage.completion_tokens == 20


def test_completions(server: Server) -> None:
    create: Any = server.client().completions.create
    done = create(**GREEDY, prompt="The sea")
    assert done.usage.completion_tokens <= 16 and done.object == "text_completion"
    assert "".join(c.choices[0].text for c in create(**GREEDY, prompt="The sea", stream=True)) == (
        done.choices[0].text
    )
    tokens = server.post("/tokenize", {"prompt": "The sea"}).json()["tokens"]
    assert create(**GREEDY, prompt=tokens).choices[0].text == done.choices[0].text
    many = create(**GREEDY, prompt=["The sea", "A house"], n=2, echo=True, max_tokens=4)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert [choice.text[:5] for choice in many.choices] == ["The s"] * 2 + ["A hou"] * 2
    told = create(**GREEDY, prompt="The sea", logprobs=2, max_tokens=5).choices[0]
    assert "".join(told.logprobs.tokens) == told.text
    assert told.logprobs.text_offset[1] == len(told.logprobs.tokens[0])
    assert all(len(top) == 2 for top in told.logprobs.top_logprobs)
    drawn = create(model="demo", prompt="The sea", temperature=5, seed=1, logprobs=0, max_tokens=9)
    found = drawn.choices[0].logprobs
    assert [[*top.items()] for top in found.top_logprobs] == [
        [pair] for pair in zip(found.tokens, found.token_logprobs, strict=True)
    ]


def test_forms(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"enum": ["Ann", "Bob"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }

    def ask(**more: Any) -> str:
        done: Any = server.client().chat.completions.create(
            model="demo", messages=MESSAGES, temperature=1, seed=3, max_tokens=60, **more
        )
        assert done.choices[0].finish_reason == "stop"
        return str(done.choices[0].message.content)

    wanted = {"type": "json_schema", "json_schema": {"name": "who", "schema": schema}}
    found = json.loads(ask(response_format=wanted))
    assert found["name"] in ("Ann", "Bob") and isinstance(found["age"], int)
    assert re.fullmatch("[A-D]{3}", ask(extra_body={"regex": "[A-D]{3}"}))
    assert ask(extra_body={"grammar": 'start: "yes" | "no"'}) in ("yes", "no")
    done: Any = server.client().chat.completions.create(
        model="demo", messages=MESSAGES, max_tokens=5, response_format={"type": "json_object"}
    )
    assert done.choices[0].message.content.startswith("{")


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "What the sky does.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "clock"}}]
)
def test_forced_calls_of_tools(server: Server, choice: Any) -> None:
    create: Any = server.client().chat.completions.create
    asked = {"messages": MESSAGES, "tools": [WEATHER, CLOCK], "tool_choice": choice, "seed": 5}
    whole = create(model="demo", **asked).choices[0]
    assert whole.finish_reason == "tool_calls" and whole.message.content is None
    [call] = whole.message.tool_calls
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        assert choice == "required"
        assert arguments["city"] in ("Paris", "Rome") and arguments["days"] in (1, 2, 3)
    else:
        assert (call.function.name, arguments) == ("clock", {})
    chunks = list(create(model="demo", stream=True, **asked))
    [delta] = [c.choices[0].delta for c in chunks if c.choices[0].delta.tool_calls]
    assert dict(delta.tool_calls[0].function) == dict(call.function)
    assert chunks[-1].choices[0].finish_reason == "tool_calls" and texts(chunks) == ""
    # The conversation goes on with the call and its result.
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    again = [*MESSAGES, whole.message.model_dump(exclude_none=True), result]
    done = create(model="demo", messages=again, tools=[WEATHER], max_tokens=3, tool_choice="none")
    assert done.choices[0].message.content is not None


def test_text_where_no_tool_is_called(server: Server) -> None:
    asked: Any = {"messages": MESSAGES, "tools": [WEATHER], "max_tokens": 8}
    with_tools = server.client().chat.completions.create(**GREEDY, **asked)
    asked.pop("tools")
    without = server.client().chat.completions.create(**GREEDY, **asked)
    assert with_tools.choices[0].message.content == without.choices[0].message.content


def test_responses(server: Server) -> None:
    create: Any = server.client().responses.create
    whole = create(**GREEDY, input="Who are you?", instructions="Be kind.", max_output_tokens=8)
    chat: Any = server.client().chat.completions.create(
        **GREEDY,
        messages=[{"role": "system", "content": "Be kind."}, MESSAGES[1]],
        max_tokens=8,
    )
    assert whole.output_text == chat.choices[0].message.content
    assert whole.usage.total_tokens == chat.usage.total_tokens
    conversation = [
        {"role": "user", "content": "Who are you?"},
        *[item.model_dump() for item in whole.output],
        {"role": "user", "content": [{"type": "input_text", "text": "And now?"}]},
    ]
    turn = create(**GREEDY, input=conversation, max_output_tokens=4)
    assert turn.status in ("completed", "incomplete") and turn.output_text
    events = list(
        create(
            **GREEDY,
            input="Who are you?",
            instructions="Be kind.",
            max_output_tokens=8,
            stream=True,
        )
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text
    assert events[0].response.object == "response" and events[0].response.tools == []
    more: Any = {"metadata": {"who": "me"}, "tools": [], "parallel_tool_calls": True}
    assert create(**GREEDY, input="x", max_output_tokens=1, **more).metadata == {"who": "me"}
    form = {"format": {"type": "json_schema", "name": "n", "schema": {"enum": ["a", "b"]}}}
    assert json.loads(create(**GREEDY, input="x", text=form).output_text) in ("a", "b")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"functions": []}, "functions"),
        ({"store": True}, "store"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 65}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"5000": 1}}, "logit_bias"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "strict"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"regex": "(", "model": "demo"}, "regex"),
        ({"regex": "a", "grammar": "start: /a/"}, "regex"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ],
)
def test_what_is_wrong_or_unsupported_is_named(server: Server, more: Any, named: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(
            **{"model": "demo", "messages": MESSAGES, "max_tokens": 2}, extra_body=more
        )
    assert named in str(caught.value.body), caught.value.body
    assert set(caught.value.body) == {"message", "type", "param", "code"}  # type: ignore[arg-type]


def test_too_long_a_prompt(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="2048") as caught:
        server.client().completions.create(model="demo", prompt="word " * 3000)
    assert caught.value.code == "context_length_exceeded"
