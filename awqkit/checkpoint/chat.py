"""Texts and conversations as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from awqkit.checkpoint.errors import CheckpointError, ConversationError
from awqkit.checkpoint.text_tokenizer import TextTokenizer

Message = Mapping[str, Any]


def encode_prompt(tokenizer: TextTokenizer, text: str) -> list[int]:
    """The ids of a plain text, with bos and eos as the tokenizer adds them by default."""
    return tokenizer.encode(text)


def render_chat(
    tokenizer: TextTokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """The ids of a conversation in the model's chat template.

    messages: each with a `role` and a `content`, both texts.  add_generation_prompt: open the
    assistant's next turn.  tools: for templates that know them, in OpenAI's form.  The
    template alone decides about bos, so it never comes twice.
    Raises CheckpointError where the tokenizer has no usable template, and ConversationError where
    the messages are malformed or the template refuses them.
    """
    text = render_chat_text(
        tokenizer, messages, add_generation_prompt=add_generation_prompt, tools=tools
    )
    return encode_rendered(tokenizer, text)


def encode_rendered(tokenizer: TextTokenizer, text: str) -> list[int]:
    """The ids of what render_chat_text gave."""
    return tokenizer.encode(text, add_special_tokens=False)


def render_chat_text(
    tokenizer: TextTokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The text that render_chat encodes; the same errors."""
    from jinja2 import TemplateError, TemplateSyntaxError

    from awqkit.checkpoint.chat_template import render_template

    template = _template(tokenizer, with_tools=tools is not None)
    _require_wellformed(messages)
    try:
        return render_template(
            template,
            messages,
            named_tokens=tokenizer.named_tokens,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
        )
    except TemplateSyntaxError as error:
        raise CheckpointError(
            f"The model's chat template is damaged: {error.message} (line {error.lineno}). "
            "Correct chat_template in tokenizer_config.json or chat_template.jinja."
        ) from error
    # A template is a program: it may fail in every way that an expression on its data can.
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        reason = str(error) or type(error).__name__
        raise ConversationError(
            f"The model's chat template refuses this conversation: {reason}. Give it "
            "the roles and the order that the model's card shows, usually an optional system "
            "message and then user and assistant in turn."
        ) from error


def _template(tokenizer: TextTokenizer, *, with_tools: bool) -> str:
    """The one for tools, where there is one and there are tools."""
    templates = tokenizer.chat_template
    template = templates
    if isinstance(templates, Mapping):
        default = templates.get("default")
        template = templates.get("tool_use", default) if with_tools else default
    if isinstance(template, str) and template:
        return template
    if templates:
        named = ", ".join(sorted(map(str, templates)))
        what = f"several chat templates ({named}) and none called default"
    else:
        what = "no chat template, as is usual for a base model"
    raise CheckpointError(
        f"The model has {what}. Put the template into chat_template.jinja in the model folder, or "
        "give the model plain text instead of a conversation."
    )


def _require_wellformed(messages: Sequence[Message]) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ConversationError(
            "A conversation is a non-empty list of messages such as "
            '{"role": "user", "content": "Hello"}.'
        )
    for number, message in enumerate(messages, start=1):
        for key in ("role", "content"):
            value = message.get(key) if isinstance(message, Mapping) else None
            if not isinstance(value, str):
                raise ConversationError(
                    f"Message {number} of the conversation has {key} {value!r}; each message needs "
                    '`role` and `content` as texts, such as {"role": "user", "content": "Hello"}.'
                )
