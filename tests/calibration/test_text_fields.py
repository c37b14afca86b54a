"""Which text is taken from a record, and what is said where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from awqkit.calibration.chat_text import chat_renderer
from awqkit.calibration.text_fields import (
    RECORDS_BEFORE_GIVING_UP,
    documents_in,
    text_columns,
    text_of,
)
from awqkit.errors import CalibrationError
from tests.calibration.calibration_tokenizers import CHAT_TEMPLATE, byte_tokenizer


def render(messages: Any) -> str:
    return "|".join(f"{message['role']}:{message['content']}" for message in messages)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ("plain", "plain"),
        ({"id": 3, "text": "a"}, "a"),
        ({"content": "a", "title": "b"}, "a"),
        ({"document": "a"}, "a"),
        ({"text": None, "article": "a"}, "a"),
        ({"text": " ", "content": "a"}, "a"),
        ({"text": ""}, ""),
        ({"text": None}, ""),
        ({"prompt": "a", "completion": "b"}, "a\nb"),
        ({"instruction": "a", "input": "", "output": "b"}, "a\nb"),
        ({"instruction": "a", "input": "b", "output": "c"}, "a\nb\nc"),
        ({"instruction": "a", "output": "c"}, "a\nc"),
        ({"question": "a", "answer": "b"}, "a\nb"),
        ({"prompt": "a"}, None),
        ({"text": 5, "ids": [1, 2]}, None),
        ({}, None),
        (5, None),
        (None, None),
        ([1, 2], None),
        ({"messages": []}, None),
        ({"messages": "a"}, None),
        ({"messages": [{"role": "user", "content": "a"}]}, "user:a"),
        ([{"role": "user", "content": "a"}], "user:a"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "user:a|assistant:b",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}, {"text": "a"}]}]},
            "user:a",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": None},
                    {"role": "user", "content": "a"},
                ]
            },
            "user:a",
        ),
        ({"messages": [{"role": None, "content": "a"}, 7]}, None),
    ],
)
def test_text_of_a_record(record: Any, text: str | None) -> None:
    assert text_of(record, render_chat=render) == text


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["id", "text", "url"], ["text"]),
        (["image", "messages"], ["messages"]),
        (["instruction", "output", "input", "id"], ["instruction", "output", "input"]),
        (["prompt", "stars"], ["prompt", "stars"]),
        ([], []),
    ],
)
def test_columns_worth_reading(names: list[str], chosen: list[str]) -> None:
    """Where no document can be made of them, all are read, so that the error names all."""
    assert text_columns(names) == chosen


def test_records_without_text_are_passed_over_when_others_have_some() -> None:
    records = [{"foo": 1}, {"text": "a"}, {"text": ""}, {"foo": 2}, {"text": "b"}]
    assert list(documents_in(records, name="x", render_chat=render)) == ["a", "b"]


def test_no_text_field_names_the_fields_that_were_seen() -> None:
    records = [{"title": "a", "ids": [1]}, {"title": "b", "stars": 3}]
    with pytest.raises(CalibrationError) as caught:
        list(documents_in(records, name="reviews.jsonl", render_chat=render))
    message = str(caught.value)
    assert "reviews.jsonl has no text field" in message
    assert "the fields seen are: title (str), ids (list), stars (int)." in message
    assert "messages" in message and "prompt + completion" in message and "\n" not in message


def test_gives_up_on_an_endless_source_without_text() -> None:
    read = 0

    def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield {f"field {read}": read}

    with pytest.raises(CalibrationError, match=r"field 1 \(int\), field 2 .*, …"):
        list(documents_in(endless(), name="x", render_chat=render))
    assert read == RECORDS_BEFORE_GIVING_UP + 1


def test_records_that_are_no_objects() -> None:
    with pytest.raises(CalibrationError, match="a bare int"):
        list(documents_in([1, 2], name="x", render_chat=render))


def test_chats_go_through_the_template() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    templated = chat_renderer(byte_tokenizer(chat_template=CHAT_TEMPLATE))
    assert templated(messages) == "<s>[user]a[assistant]b"
    assert chat_renderer(byte_tokenizer())(messages) == "a\n\nb"


def test_a_conversation_that_the_template_refuses_is_joined_plainly() -> None:
    templated = chat_renderer(byte_tokenizer(chat_template=CHAT_TEMPLATE))
    messages = [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]
    assert templated(messages) == "a\n\nb"
