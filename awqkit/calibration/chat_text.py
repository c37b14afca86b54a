"""Conversations as calibration text."""

from collections.abc import Sequence
from typing import Any, Protocol

from awqkit.calibration.text_fields import Message, RenderChat


class ChatTokenizer(Protocol):
    """The part of a tokenizer of the transformers library that renders conversations."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


def chat_renderer(tokenizer: ChatTokenizer) -> RenderChat:
    """Renders through the tokenizer's chat template, so that the model sees chats as in service.

    Without a template, or where it refuses a conversation (roles out of order, no room for a
    system message), the messages are joined plainly.
    """
    if not tokenizer.chat_template:
        return _joined

    from jinja2 import TemplateError

    def render(messages: Sequence[Message]) -> str:
        try:
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False))
        except (TemplateError, TypeError, ValueError):
            return _joined(messages)

    return render


def _joined(messages: Sequence[Message]) -> str:
    return "\n\n".join(message["content"] for message in messages)
