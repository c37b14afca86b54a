"""Chat templates: Jinja programs of a checkpoint, which nobody has reason to trust.

They see what they see in the transformers library, for which they were written: `messages`,
`tools`, `documents` (none here), `add_generation_prompt` and the named tokens; the functions
`raise_exception` and `strftime_now`; a `tojson` that leaves text as it is; loop controls, and the
tag `generation`, which marks the assistant's part and changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

#: Compiled templates that are kept; a process uses one model, or a few.
_KEPT_TEMPLATES = 8
#: Names of an answer's reasoning, the one that most templates read first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
#: What a subclass, such as an enumeration of texts, holds.
_SCALARS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
)


def render_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    named_tokens: Mapping[str, str],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """The text of a conversation; entries of messages that are None count as absent.

    Raises jinja2.TemplateError where the template is damaged or refuses, and whatever an expression
    on its data can raise.
    """
    return _compiled(template).render(
        messages=[_message(message) for message in messages],
        tools=_plain(tools),
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **named_tokens,
    )


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """What a model thought goes by several names, of which a template reads one."""
    plain = {key: _plain(value) for key, value in message.items() if value is not None}
    for name in _REASONING:
        if name in plain:
            return {"thinking": plain[name], **plain, "reasoning_content": plain[name]}
    return plain


def _plain(value: Any) -> Any:
    """The value as JSON's types: methods of other objects are none of a template's business."""
    if value is None or isinstance(value, bool):
        return value
    for kind, plain in _SCALARS:
        if isinstance(value, kind):
            return plain(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    raise TypeError(f"a message holds a {type(value).__name__}, which no template can read")


@lru_cache(_KEPT_TEMPLATES)
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": _now,
        "namespace": _PublicNamespace,
    }
    return environment.from_string(template)


class _GenerationTag(Extension):
    """{% generation %} … {% endgeneration %} is what stands between, in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own declaration)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        return Scope(
            parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line
        )


class _PublicNamespace(Namespace):
    """Jinja's, without names that would shadow what Python or the sandbox looks up on an object."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        for name in dict(*args[1:], **kwargs):
            _require_public(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace of a template cannot have the name {name!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
