"""Templates give what they give in the transformers library, and reach nothing else."""

from __future__ import annotations

import enum
import random
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from awqkit.checkpoint.chat_template import render_template
from awqkit.checkpoint.tokenizer import load_tokenizer, render_chat_text, transformers_tokenizer
from tests.checkpoint.tokenizer_folders import TURN_TEMPLATE, write_fast_folder

DEMO = Path(__file__).parents[2] / "examples" / "demo_model" / "model"
TEMPLATES = {
    "turns": TURN_TEMPLATE,
    "lines": (
        "{{ bos_token }}\n"
        "{% for message in messages %}\n"
        "    {% if loop.first and message.role == 'system' %}\n"
        "    {{- message.content | trim }}\n"
        "    {% else %}\n"
        "[{{ message['role'] | upper }}] {{ message['content'] }}{{ eos_token }}\n"
        "    {% endif %}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}\n[ASSISTANT]{% endif %}\n"
    ),
    "namespace": (
        "{% set ns = namespace(found=false, last=-1) %}{% for m in messages[::-1] %}"
        "{% set index = messages | length - 1 - loop.index0 %}"
        "{% if not ns.found and m.role == 'user' %}{% set ns.found = true %}"
        "{% set ns.last = index %}{% endif %}{% endfor %}{{ ns.last }}|"
        "{% for m in messages %}{% if loop.index0 > ns.last %}{% break %}{% endif %}"
        "{% if m.content is not string or not m.content %}{% continue %}{% endif %}"
        "{{ m.content.split('\\n')[-1].lstrip() }};{% endfor %}"
    ),
    "tools": (
        "{% if tools is not none and tools %}{% for tool in tools %}{{ tool | tojson }}\n"
        "{{ tool | tojson(indent=2) }}{% endfor %}{% endif %}"
        "{% for m in messages %}{{ m | tojson }}{% if m.tool_calls is defined and m.tool_calls %}"
        "{% for call in m.tool_calls %}{{ call.function.name }}({{ call.function.arguments.items()"
        " | list }}){% endfor %}{% endif %}{% endfor %}"
    ),
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{% set inner = m.content %}{{ inner }}{% endgeneration %}{{ inner }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "macros": (
        "{% macro turn(m, tail='') %}<{{ m.role }}>{{ m.content ~ tail }}{% endmacro %}"
        "{% for m in messages %}{{ turn(m, tail=loop.cycle('.', '!')) }}{% endfor %}"
        "{{ dict(a=1)['a'] }}{{ '%04d' | format(7) }}{{ strftime_now('%Y') }}"
        "{{ documents is none }}{{ unknown is defined }}{{ messages[0].get('name', 'nobody') }}"
    ),
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "wetter",
            "description": "Wie wird's in <b>Köln</b> & 北京?",
            "parameters": {"type": "object", "properties": {"days": {"enum": [1, 2.5, None]}}},
        },
    }
]
CALL = {"type": "function", "function": {"name": "wetter", "arguments": {"days": 1, "ß": [True]}}}
WORDS = (
    "hello",
    " ",
    "\n",
    "Köln & <b>",
    "北京",
    "{{ 1 }}",
    "'\"\\",
    "",
    "  two\n\n lines \n",
    "🙂",
)


def conversations(*, count: int) -> list[list[dict[str, Any]]]:
    rng = random.Random(5)
    made = []
    for _ in range(count):
        roles = [*(["system"] * rng.randrange(2)), *["user", "assistant"] * rng.randrange(1, 4)]
        chat: list[dict[str, Any]] = [
            {"role": role, "content": "".join(rng.choices(WORDS, k=rng.randrange(1, 5)))}
            for role in roles[: rng.randrange(1, len(roles) + 1)]
        ]
        if chat[-1]["role"] == "assistant":
            chat[-1]["tool_calls"] = [CALL] * rng.randrange(3)
        made.append(chat)
    return made


@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations_are_those_of_the_transformers_library(name: str, tmp_path: Path) -> None:
    require_same(write_fast_folder(tmp_path, bos="<|begin|>", chat_template=TEMPLATES[name]))


def test_so_are_those_of_a_trained_model() -> None:
    require_same(DEMO)


def require_same(folder: Path) -> None:
    ours, theirs = load_tokenizer(folder), transformers_tokenizer(folder)
    for number, chat in enumerate(conversations(count=40)):
        for tools in (None, TOOLS):
            opened = number % 2 == 0
            text = theirs.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=opened, tools=tools
            )
            assert text == render_chat_text(ours, chat, add_generation_prompt=opened, tools=tools)


def render(template: str, **message: Any) -> str:
    return render_template(template, [{"role": "user", **message}], named_tokens={})


def test_entries_that_are_none_count_as_absent() -> None:
    template = "{{ messages[0].name is defined }} {{ messages[0] | tojson }}"
    assert render(template, name=None) == 'False {"role": "user"}'


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_what_a_model_thought_is_found_by_the_name_that_a_template_reads(name: str) -> None:
    assert render("{{ messages[0].reasoning_content }}", **{name: "hm"}) == "hm"
    assert render("{{ messages[0].thinking }}", **{name: "hm"}) == "hm"
    assert render("{{ messages[0].reasoning_content is defined }}", **{name: None}) == "False"


def test_a_text_of_another_class_is_its_text() -> None:
    class Role(enum.StrEnum):
        WRITER = "writer"

    assert render("{{ messages[0].by }} {{ messages[0] | tojson }}", by=Role.WRITER) == (
        'writer {"role": "user", "by": "writer"}'
    )


def test_objects_of_the_caller_do_not_reach_a_template(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Path"):
        render("{{ messages[0].where.unlink() }}", where=tmp_path)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.json }}",
        "{% set ns = namespace(__call__=1) %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ dict.mro() }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
    ],
)
def test_what_a_sandbox_keeps_in_stays_in(template: str) -> None:
    with pytest.raises((TemplateError, TypeError)):
        render(template)
