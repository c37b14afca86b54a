"""Prompts and conversations as token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from awqkit.checkpoint.errors import CheckpointError, ConversationError
from awqkit.checkpoint.tokenizer import (
    encode_prompt,
    load_tokenizer,
    render_chat,
    render_chat_text,
)
from tests.checkpoint.tokenizer_folders import TURN_TEMPLATE, write_fast_folder

HELLO = [{"role": "user", "content": "hello"}]
STRICT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
)


def tokenizer(tmp_path: Path, template: Any = None, **options: Any) -> Any:
    return load_tokenizer(write_fast_folder(tmp_path / "m", chat_template=template, **options))


def test_a_prompt_gets_bos_only_where_the_tokenizer_adds_one(tmp_path: Path) -> None:
    plain = load_tokenizer(write_fast_folder(tmp_path / "plain"))
    adding = load_tokenizer(write_fast_folder(tmp_path / "adding", bos="<|begin|>"))
    ids = encode_prompt(plain, "the river")
    assert encode_prompt(adding, "the river") == [adding.bos_token_id, *ids]
    assert all(type(index) is int for index in ids)
    assert encode_prompt(plain, "") == []
    assert encode_prompt(adding, "") == [adding.bos_token_id]


def test_the_template_decides_about_bos(tmp_path: Path) -> None:
    loaded = tokenizer(tmp_path, "{{ bos_token }}" + TURN_TEMPLATE, bos="<|begin|>")
    ids = render_chat(loaded, HELLO)
    assert ids.count(loaded.bos_token_id) == 1
    expected = "<|begin|><|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert loaded.decode(ids) == expected
    closed = render_chat(loaded, HELLO, add_generation_prompt=False)
    assert loaded.decode(closed) == expected.removesuffix("<|im_start|>assistant\n")


def test_one_of_several_templates_is_the_default(tmp_path: Path) -> None:
    templates = [
        {"name": "default", "template": TURN_TEMPLATE},
        {"name": "tool_use", "template": "other"},
    ]
    assert "hello" in (loaded := tokenizer(tmp_path, templates)).decode(render_chat(loaded, HELLO))
    with pytest.raises(CheckpointError, match=r"\(tool_use\).*none called default"):
        render_chat(tokenizer(tmp_path, templates[1:]), HELLO)


def test_tools_have_a_template_of_their_own_where_the_model_has_one(tmp_path: Path) -> None:
    templates = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | length }} tools"},
    ]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    several = tokenizer(tmp_path / "several", templates)
    assert render_chat_text(several, HELLO, tools=tools) == "1 tools"
    assert render_chat_text(several, HELLO) == "plain"
    one = tokenizer(tmp_path / "one", templates[:1])
    assert render_chat_text(one, HELLO, tools=tools) == "plain"


def test_without_a_template_the_cure_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no chat template.*chat_template\.jinja"):
        render_chat(tokenizer(tmp_path), HELLO)


def test_a_damaged_template_is_the_checkpoints_fault(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        render_chat(tokenizer(tmp_path, "{% for m in %}"), HELLO)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        {"role": "user", "content": "hello"},
        ["hello"],
        [{"role": "user"}],
        [{"content": "hello"}],
        [{"role": "user", "content": None}],
        [{"role": 1, "content": "hello"}],
    ],
)
def test_malformed_messages_are_refused(tmp_path: Path, messages: Any) -> None:
    with pytest.raises(ConversationError, match="message"):
        render_chat(tokenizer(tmp_path, TURN_TEMPLATE), messages)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (STRICT, "roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", "refuses"),
        ("{{ 1 / 0 }}", "zero"),
        ("{{ messages[0].missing.deeper }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
    ],
)
def test_what_a_template_refuses_is_reported(tmp_path: Path, template: str, said: str) -> None:
    with pytest.raises(ConversationError, match=said):
        render_chat(tokenizer(tmp_path, template), [{"role": "critic", "content": "hello"}])
